"""Seconds that a round over silos takes beside tuning, and what they are made of.

A real server and real sites on this machine, each with FLARE's processes; the trainers are stubs, which do
all that a trainer does with a message but train. So the whole of a round is overhead. A round lasts from one
request's making to the next one's, by the server's clock; the first of each run, in which everything is
warmed up, does not count. All sites share this machine's processors and its disk.

The parts are taken in one process afterwards, where the same server asks the same stubs without any network:
what the network's rounds take beyond their sum is FLARE, its sockets, and waiting.
"""

from __future__ import annotations

import statistics
import sys
from argparse import Namespace
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any

from benchmarks import common, silos_setting, silos_stub
from benchmarks.at_once import AtOnce
from benchmarks.common import Figures, Table
from benchmarks.overhead import Clock, timed
from benchmarks.silos_stub import Stub, Visit
from shepherd.aggregations import mean
from shepherd.core import factor_gap
from shepherd.rounds import acceptance
from shepherd.run import checkpoint
from shepherd.silos.protocol import wire
from shepherd.silos.server import server_run

KB, MB = 10**3, 2**20


@dataclass(frozen=True, slots=True)
class Case:
    """One line of the table. `target` in seconds, None where there is none."""

    sites: int
    size: int
    rounds: int
    target: float | None

    @property
    def title(self) -> str:
        return f"{self.sites} sites, {_size(self.size)}"


CASES = (
    Case(3, KB, 40, 1.0),
    Case(3, 16 * MB, 20, 3.0),
    Case(3, 64 * MB, 10, 5.0),
    Case(10, 16 * MB, 8, None),
)
QUICK = (Case(2, KB, 3, None),)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = common.parser(__doc__)
    parser.add_argument("--only", type=int, action="append", help="the case of this number, from 1 on")
    return common.run(parser.parse_args(arguments), measure, tables)


def measure(options: Namespace) -> Figures:
    cases = QUICK if options.quick else CASES
    chosen = [case for number, case in enumerate(cases, 1) if number in (options.only or range(1, 9))]
    measured: list[Figures] = []
    for case in chosen:
        with TemporaryDirectory() as scratch:
            over = _over_network(case, Path(scratch))
        with TemporaryDirectory() as scratch:
            parts = _in_process(case, Path(scratch))
        measured.append({**over, "parts": parts})
        print(f"{case.title}: {over['seconds']['median']:.2f} s a round", flush=True)
    passed = all(c["target"] is None or c["seconds"]["median"] <= c["target"] for c in measured)
    return {"cases": measured, "passed": passed}


def _over_network(case: Case, scratch: Path) -> Figures:
    sites = silos_setting.names(case.sites)
    order = silos_setting.order(sites, case.rounds + 2)
    state = silos_setting.first(scratch / "first", silos_setting.adapter(case.size))
    with silos_setting.running(scratch / "federation", sites) as made:
        finished = list(silos_setting.followed(made, order, state, scratch / "jobs"))
        homes = [made.kit(site) / silos_setting.HOME for site in sites]
        seen = [visit for home in homes for visit in silos_stub.visits(home)]
    if finished[-1] != case.rounds + 2:
        raise RuntimeError(f"{case.title}: {finished[-1]} of {case.rounds + 2} rounds")
    return {
        "title": case.title,
        "sites": case.sites,
        "bytes": case.size,
        "target": case.target,
        **_of(lengths(seen)),
        "at_a_site": statistics.median(v.left - v.came for v in seen if v.kind == "train"),
        "way_there": statistics.median(v.came - v.sent for v in seen if v.kind == "train"),
    }


def lengths(seen: Sequence[Visit]) -> list[float]:
    """Seconds of each round but the first and the last: from its first request's making to the next one's.

    >>> lengths([Visit("train", round, sent, 9.0, 9.0) for round, sent in enumerate((1.0, 4.0, 6.0))])
    [2.0]
    """
    began: dict[int, float] = {}
    for visit in seen:
        if visit.kind == "train":
            began[visit.round] = min(visit.sent, began.get(visit.round, visit.sent))
    times = [began[round] for round in sorted(began)]
    return [after - before for before, after in pairwise(times[1:])]


def _of(seconds: Sequence[float]) -> Figures:
    ordered = sorted(seconds)
    return {
        "rounds": len(ordered),
        "seconds": {"median": statistics.median(ordered), "least": ordered[0], "most": ordered[-1]},
    }


@dataclass(slots=True)
class Direct(AtOnce):
    """A Post that calls the stubs in this process, one after the other; no clock runs there but its own."""

    stubs: dict[str, Stub]
    stopped: Sequence[Clock] = ()
    at_sites: Clock = field(default_factory=Clock)

    def present(self) -> Sequence[str]:
        return sorted(self.stubs)

    def ask(self, message: bytes, sites: Sequence[str], seconds: float) -> Iterator[tuple[str, bytes]]:
        for site in sites:
            before = [clock.seconds for clock in self.stopped]
            began = perf_counter()
            answer = self.stubs[site].handle(message)
            self.at_sites.seconds += perf_counter() - began
            for clock, stood in zip(self.stopped, before, strict=True):
                clock.seconds = stood
            yield site, answer


PARTS: tuple[tuple[str, Any, str], ...] = (
    ("encode the request", wire, "encode_request"),
    ("name the question", wire, "request_id"),
    ("read the answers", wire, "decode_reply"),
    ("check them", acceptance, "check_report"),
    ("check them", acceptance, "check_tensors"),
    ("measure the gap", factor_gap.Gap, "add"),
    ("measure the gap", factor_gap.Gap, "value"),
    ("add them up", mean, "_add"),
    ("save the checkpoint", checkpoint, "save"),
)


def _in_process(case: Case, scratch: Path) -> Figures:
    """Seconds a round of each part, without a network; of a second run, since a first one warms up."""
    _alone(case, scratch / "first")
    return _alone(case, scratch / "second")


def _alone(case: Case, scratch: Path) -> Figures:
    sites, count = silos_setting.names(case.sites), min(case.rounds, 5)
    state = silos_setting.first(scratch / "state", silos_setting.adapter(case.size))
    post = Direct({site: Stub(site, scratch / site) for site in sites})
    served = server_run.ServerRun(silos_setting.order(sites, count), scratch / "run", state, post)
    with ExitStack() as clocks:
        running = [(part, clocks.enter_context(timed(owner, name))) for part, owner, name in PARTS]
        post.stopped = [clock for _, clock in running]
        whole = clocks.enter_context(timed(server_run.ServerRun, "_run_rounds"))
        served.run()
    if served.snapshot({})["outcome"] != {"finished": True}:
        raise RuntimeError(str(served.snapshot({})["outcome"]))
    running.append(("the sites, one after the other", post.at_sites))
    return _shares(running, whole, count)


def _shares(running: Sequence[tuple[str, Clock]], whole: Clock, count: int) -> Figures:
    shares: dict[str, float] = {}
    for part, clock in running:
        shares[part] = shares.get(part, 0.0) + clock.seconds / count
    shares["the rest"] = whole.seconds / count - sum(shares.values())
    return {"seconds": shares, "whole": whole.seconds / count}


def tables(figures: Figures) -> list[Table]:
    cases = figures["cases"]
    rows = [
        (
            case["title"],
            str(case["rounds"]),
            f"{case['seconds']['median']:.2f}",
            f"{case['seconds']['least']:.2f} to {case['seconds']['most']:.2f}",
            f"{case['target']:g}" if case["target"] else "",
            f"{case['way_there']:.2f}",
            f"{case['at_a_site']:.2f}",
            f"{case['parts']['whole']:.2f}",
        )
        for case in cases
    ]
    columns = ("", "rounds", "seconds", "least to most", "target", "way there", "at a site", "in process")
    whole = Table("A round beyond tuning", columns, rows)
    names = list(cases[0]["parts"]["seconds"])
    parts = [(name, *(f"{1000 * case['parts']['seconds'][name]:,.0f}" for case in cases)) for name in names]
    titles = ("milliseconds a round", *(case["title"] for case in cases))
    return [whole, Table("In one process, without a network", titles, parts)]


def _size(size: int) -> str:
    return f"{size // MB} MB" if size >= MB else f"{size // KB} kB"


if __name__ == "__main__":
    sys.exit(main())
