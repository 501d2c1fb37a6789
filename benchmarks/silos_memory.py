"""Peak memory of the server of a federation, by the number of its sites: bounded by the wave, not by them.

A real server, real sites with FLARE's processes, and stubs for trainers; requests go out in waves of four.
The peak is the kernel's high-water mark of resident memory (VmHWM) of the server's job process, where the
updates are, and of FLARE's parent process beside it. Every number of sites goes through as many waves: a
high-water mark grows with how often it is drawn, and with what a wave never gives back; neither is a matter
of how many sites there are, and the marks after each round show both.
"""

from __future__ import annotations

import math
import re
import sys
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import psutil

from benchmarks import common, silos_setting
from benchmarks.common import Figures, Table, share

MB = 2**20
SITES = (4, 10, 20)
FLAT = 0.15
JOB, PARENT = "nvflare.private.fed.app.server.runner_process", "shepherd.silos.flare.patches.site_parent"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = common.parser(__doc__)
    parser.add_argument("--sites", type=int, action="append", help="default: 4, 10 and 20")
    parser.add_argument("--mb", type=int, default=64, help="megabytes of an adapter (default 64)")
    parser.add_argument("--wave", type=int, default=4, help="sites asked at once (default 4)")
    parser.add_argument("--waves", type=int, default=15, help="in all, for each number of sites (default 15)")
    return common.run(parser.parse_args(arguments), measure, tables)


def measure(options: Namespace) -> Figures:
    counts, size, waves = options.sites or SITES, options.mb * MB, options.waves
    if options.quick:
        counts, size, waves = (2,), MB, 2
    cases = []
    for count in counts:
        rounds = max(1, round(waves / math.ceil(count / options.wave)))
        with TemporaryDirectory() as scratch:
            cases.append(_case(count, size, rounds, options.wave, Path(scratch)))
        print(f"{count} sites: {cases[-1]['job'] / MB:,.0f} MB", flush=True)
    least, most = (pick(case["job"] for case in cases) for pick in (min, max))
    return {
        "bytes": size,
        "wave": options.wave,
        "waves": waves,
        "cases": cases,
        "spread": most / least - 1,
        "target": FLAT,
        "passed": most / least - 1 <= FLAT,
    }


def _case(count: int, size: int, rounds: int, wave: int, scratch: Path) -> Figures:
    sites = silos_setting.names(count)
    order = silos_setting.order(sites, rounds, wave)
    state = silos_setting.first(scratch / "first", silos_setting.adapter(size))
    peaks: dict[str, list[int]] = {"job": [], "parent": []}
    with silos_setting.running(scratch / "federation", sites) as made:
        kit = str(made.folder / "server")
        for _ in silos_setting.followed(made, order, state, scratch / "jobs"):
            peaks["job"].append(_peak(JOB, kit))
            peaks["parent"].append(_peak(PARENT, kit))
    if len(peaks["job"]) != rounds + 1:  # with the row before training
        raise RuntimeError(f"{count} sites: {len(peaks['job']) - 1} of {rounds} rounds")
    return {"sites": count, "by_round": peaks, "job": peaks["job"][-1], "parent": peaks["parent"][-1]}


def _peak(module: str, kit: str) -> int:
    """The high-water mark of the one process that runs a module for a kit, in bytes."""
    found = [p for p in psutil.process_iter() if _runs(p, module, kit)]
    if len(found) != 1:
        raise RuntimeError(f"{len(found)} processes run {module} for {kit}")
    return high_water(found[0].pid)


def _runs(process: psutil.Process, module: str, kit: str) -> bool:
    try:
        words = process.cmdline()
    except psutil.Error:
        return False
    return module in words and kit in words


def high_water(pid: int) -> int:
    """The most resident memory that a process has had, in bytes."""
    text = Path(f"/proc/{pid}/status").read_text(encoding="utf8")
    found = re.search(r"^VmHWM:\s+(\d+) kB$", text, re.MULTILINE)
    if found is None:
        raise RuntimeError(f"process {pid} is over")
    return int(found[1]) * 1024


def _some(marks: Sequence[int]) -> list[int]:
    """Six of them at most, the first and the last among them."""
    last = len(marks) - 1
    return [marks[round(place * last / 5)] for place in range(6)] if last > 5 else list(marks)


def tables(figures: Figures) -> list[Table]:
    rows = [
        (
            str(case["sites"]),
            f"{case['job'] / MB:,.0f}",
            ", ".join(f"{peak / MB:,.0f}" for peak in _some(case["by_round"]["job"])),
            f"{case['parent'] / MB:,.0f}",
        )
        for case in figures["cases"]
    ]
    title = f"Peak memory of the server in MB, adapters of {figures['bytes'] / MB:,.0f} MB"
    columns = ("sites", "job process", "on the way there", "FLARE's parent")
    within = "within" if figures["passed"] else "above"
    note = (
        f"{share(figures['spread'])} between the least and the most, {within} the target of {FLAT:.0%};"
        f" {figures['waves']} waves of {figures['wave']} for each"
    )
    return [Table(title, columns, rows, (note,))]


if __name__ == "__main__":
    sys.exit(main())
