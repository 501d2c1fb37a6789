"""A federation over silos on a pretrained base: what a round takes beyond its tuning.

A real server and three real sites on this machine, trainers and all, each with a third of Dolly. The sites
share the machine's processors, so tuning is slower than at sites with machines of their own; what federation
adds is the time of a round less that of the site which took longest to tune, as the site's own log says, and
less the score of held-out examples after the last round, which a run in one process takes as well.
"""

from __future__ import annotations

import re
import sys
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

from benchmarks import common, setting
from benchmarks.common import Figures, Table
from shepherd.settings import RunSettings
from shepherd.silos import loopback
from shepherd.silos.coordinator import coordinate
from shepherd.silos.loopback import Loopback

SITES = 3
ANSWERED = re.compile(r"round (\d+), train: answered in ([\d.]+) s: (\d+) bytes")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = common.parser(__doc__)
    parser.add_argument("--base", help="a folder (default: SmolLM2-135M, see tools/get_smollm2.py)")
    parser.add_argument("--rounds", type=int, default=3, help="default 3")
    parser.add_argument("--steps", type=int, default=2, help="optimiser steps a visit (default 2)")
    parser.add_argument("--batch", type=int, default=8, help="examples a step (default 8)")
    parser.add_argument("--dtype", default="auto", choices=("auto", "float32", "bfloat16"), help="the base's")
    return common.run(parser.parse_args(arguments), measure, tables)


def measure(options: Namespace) -> Figures:
    with TemporaryDirectory() as scratch:
        settings = _settings(options, Path(scratch))
        sites = loopback.write_sites(settings, Path(scratch) / "sites", policy={"max_rank": 8})
        with loopback.running(Path(scratch) / "federation", sites) as made:
            run = coordinate.open_run(settings, made.admin)
            try:
                rows = [row for _, row in run.rounds()]
            finally:
                run.close()
            tuned = _tuned(made)
    rounds = [
        {
            "round": row["round"],
            "seconds": row["seconds"]["round"],
            "tuning": max(tuned[row["round"]]),
            "scoring": row["seconds"]["scoring"],
            "beyond": row["seconds"]["round"] - row["seconds"]["scoring"] - max(tuned[row["round"]]),
            "loss": row["loss"],
            "failures": row["failures"],
        }
        for row in rows
        if row["round"]
    ]
    return {
        "base": Path(settings.model.base).name,
        "sites": SITES,
        "steps_a_visit": settings.tuning.max_steps,
        "rounds": rounds,
        "beyond_median": median(each["beyond"] for each in rounds),
        "passed": not any(each["failures"] for each in rounds),
    }


def _settings(options: Namespace, scratch: Path) -> RunSettings:
    size = {"data": {"limit": 40}} if options.quick else {}
    rounds, steps = (2, 1) if options.quick else (options.rounds, options.steps)
    base = {} if options.quick and not options.base else {"base": options.base or str(setting.pretrained())}
    return setting.settings(
        "world" if options.quick else "dolly",
        {
            "seed": options.seed,
            "output": str(scratch / "run"),
            "model": {**base, "dtype": options.dtype},
            "adapter": {"rank": 8, "alpha": 16},
            "split": {"by": "iid", "clients": SITES},
            "federation": {"rounds": rounds},
            "selection": {"share": 1.0},
            "tuning": {"max_steps": steps, "batch_size": options.batch, "learning_rate": 3e-4},
            "evaluation": {"answers": 0, "examples": 16, "every": rounds},
        },
        size,
    )


def _tuned(made: Loopback) -> dict[int, list[float]]:
    """Round -> the seconds that each site took for its request to train."""
    found: dict[int, list[float]] = {}
    for site in made.sites:
        (log,) = made.kit(site).rglob("trainer.log")
        for number, seconds, _ in ANSWERED.findall(log.read_text(encoding="utf8")):
            found.setdefault(int(number), []).append(float(seconds))
    return found


def tables(figures: Figures) -> list[Table]:
    rows = [
        (
            str(each["round"]),
            f"{each['seconds']:.1f}",
            f"{each['tuning']:.1f}",
            f"{each['scoring']:.1f}",
            f"{each['beyond']:.1f}",
            f"{each['loss']:.4f}",
        )
        for each in figures["rounds"]
    ]
    title = (
        f"{figures['base']} over {figures['sites']} sites of one machine,"
        f" {figures['steps_a_visit']} steps a visit"
    )
    columns = ("round", "seconds", "the slowest site's tuning", "held-out score", "beyond both", "loss")
    return [Table(title, columns, rows, (f"beyond tuning: {figures['beyond_median']:.1f} s, the median",))]


if __name__ == "__main__":
    sys.exit(main())
