"""The demo: right answers by category, before and after, on examples that no client trained on.

Runs examples/demo.toml (or reads a finished run of it), answers the same held-out examples greedily with the
base alone and with the final adapter, and counts the answers that pass the example's own check. No language
model judges anything.
"""

from __future__ import annotations

import json
import sys
from argparse import Namespace
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any

from benchmarks import common, setting
from benchmarks.common import Figures, Missing, Table
from shepherd.evaluate import answers
from shepherd.run import folder
from shepherd.run.log import read_rows
from shepherd.run.opening import open_run
from shepherd.run.run import ANSWERS
from shepherd.settings import RunSettings

QUICK = {
    "data": {"limit": 20},
    "federation": {"rounds": 1},
    "tuning": {"max_steps": 1, "batch_size": 2},
    "evaluation": {"examples": 8, "answers": 8, "max_new_tokens": 4},
}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = common.parser(__doc__)
    parser.add_argument(
        "--run", type=Path, metavar="FOLDER", help="read this finished run instead of training"
    )
    return common.run(parser.parse_args(arguments), measure, tables)


def measure(options: Namespace) -> Figures:
    """Train or read the demo's run; raises Missing if there is no embedded base, or no finished run."""
    if options.run:
        return _read(options.run, None)
    with TemporaryDirectory() as scratch:
        output = Path(scratch) / "demo"
        changes = {"seed": options.seed, "output": str(output)}
        began = perf_counter()
        _train(setting.settings("world", QUICK if options.quick else {}, changes, _threads(options)))
        return _read(output, perf_counter() - began)


def _threads(options: Namespace) -> Mapping[str, Any]:
    return {"machine": {"threads": options.threads or "auto"}}


def _train(settings: RunSettings) -> None:
    with closing(open_run(settings)) as run:
        for _ in run.rounds():
            pass
        run.finish()


def _read(path: Path, seconds: float | None) -> Figures:
    """Read a run; `seconds` is the time of all of it, None for an existing run."""
    if not (path / ANSWERS).is_file():
        raise Missing(f"{path / ANSWERS} (a finished run with evaluation.answers > 0)")
    rows = [json.loads(line) for line in (path / ANSWERS).read_text(encoding="utf8").splitlines()]
    scores = {**answers.by_category(rows), **_overall(rows)}
    counts = Counter(row["category"] for row in rows)
    log = [row for row in read_rows(path) if row["round"] > 0]
    return {
        "seed": folder.read_settings(path).seed,
        "rounds": len(log),
        "seconds": {"all": seconds, "rounds": sum(row["seconds"]["round"] for row in log)},
        "answers": {
            name: {"examples": counts.get(name, len(rows)), "before": before, "after": after}
            for name, (before, after) in scores.items()
        },
    }


def _overall(rows: Sequence[Mapping[str, Any]]) -> dict[str, tuple[float, float]]:
    return answers.by_category([{**row, "category": "all"} for row in rows])


def tables(figures: Figures) -> list[Table]:
    rows = [
        (name, str(each["examples"]), common.share(each["before"]), common.share(each["after"]))
        for name, each in figures["answers"].items()
    ]
    seconds = figures["seconds"]
    whole = f", {seconds['all']:.0f} s with preparing and answering" if seconds["all"] else ""
    note = f"{figures['rounds']} rounds in {seconds['rounds']:.0f} s{whole}"
    columns = ("category", "held out", "right before", "right after")
    return [Table("The demo: right answers on held-out examples", columns, rows, (note,))]


if __name__ == "__main__":
    sys.exit(main())
