"""Time to a target loss with a tenth of the clients ten times slower: waiting for all, dropping, carrying.

    python -m benchmarks.stragglers [--rounds 60] [--clients 10] [--target LOSS] [--more KEY=VALUE ...]

Clients of the embedded world, all asked in each round, on the simulated clock of [stragglers]. Waiting for
all makes a third of the rounds, which takes longer all the same. The target is the highest of the three last
held-out losses, so that each way reaches it, unless one is given. The command passes if both other ways reach
it in less time than waiting for all.
"""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks import common, setting
from benchmarks.common import Figures, Table
from shepherd.overrides import overridden
from shepherd.run.log import read_rows
from shepherd.run.opening import open_run
from shepherd.settings import RunSettings, SplitTable

TABLES = {
    "data": {"limit": 400, "holdout": 0.1},
    "selection": {"share": 1.0},
    "tuning": {"max_steps": 8, "batch_size": 4},
    "evaluation": {"examples": 200, "answers": 0, "every": 1},
}
QUICK = {
    "data": {"limit": 40},
    "tuning": {"max_steps": 1},
    "evaluation": {"examples": 8},
}
WAYS = ("waiting for all", "dropping", "carrying")
SLOWER = 3
"""How many rounds the ways that do not wait make for each one of waiting for all."""


def main(arguments: Sequence[str] | None = None) -> int:
    parser = common.parser(__doc__)
    parser.add_argument("--rounds", type=int, default=60, help="of the ways that do not wait (default 60)")
    parser.add_argument("--clients", type=int, default=10, help="a tenth of them are slow (default 10)")
    parser.add_argument("--target", type=float, help="held-out loss to reach")
    parser.add_argument("--more", nargs="+", default=[], metavar="KEY=VALUE", help="changes of the run file")
    return common.run(parser.parse_args(arguments), measure, tables)


def measure(options: Namespace) -> Figures:
    """Train each way; raises Missing if the data are not there."""
    ways: dict[str, Figures] = {}
    with TemporaryDirectory() as scratch:
        for way in WAYS:
            settings = _settings(options, way, Path(scratch) / way.replace(" ", "-"))
            with open_run(settings) as run:
                for _ in run.rounds():
                    pass
                speeds = run.clocked.speeds if run.clocked else {}
            ways[way] = _series(read_rows(Path(settings.output)), min(speeds, key=lambda name: speeds[name]))
    target = options.target or max(each["losses"][-1] for each in ways.values())
    for each in ways.values():
        scored = zip(each["clock_s"], each["losses"], strict=True)
        each["seconds_to_target"] = next((clock for clock, loss in scored if loss <= target), None)
    slowest, *others = (each["seconds_to_target"] for each in ways.values())
    passed = all(each is not None and (slowest is None or each < slowest) for each in others)
    return {
        "target": target,
        "clients": options.clients,
        "ways": ways,
        "passed": options.quick or passed,
    }


def tables(figures: Figures) -> list[Table]:
    """One row a way."""
    rows = [
        [
            way,
            str(len(each["losses"])),
            common.count(each["clock_s"][-1]),
            f"{each['losses'][-1]:.4f}",
            f"{each['slow']:.4f}",
            "–" if each["seconds_to_target"] is None else common.count(each["seconds_to_target"]),
            *(str(each[name]) for name in ("late", "dropped", "carried")),
            f"{each['bytes_up'] / 1e6:.1f}",
        ]
        for way, each in figures["ways"].items()
    ]
    seconds = f"s to a loss of {figures['target']:.4f}"
    columns = [
        "way",
        "rounds",
        "s",
        "last loss",
        "of a slow client",
        seconds,
        "late",
        "dropped",
        "carried",
        "MB up",
    ]
    title = f"A tenth of {figures['clients']} clients ten times slower; seconds of the simulated clock"
    return [Table(title=title, columns=columns, rows=rows)]


def _series(rows: Sequence[dict[str, Any]], slow: str) -> Figures:
    made = [row for row in rows if row["round"]]
    counts = {name: sum(len(row.get(name, ())) for row in made) for name in ("late", "dropped", "carried")}
    return {
        "clock_s": [row["clock_s"] for row in made],
        "losses": [row["heldout"]["loss"] for row in made],
        "slow": made[-1]["heldout"]["client"][slow],
        "bytes_up": sum(row["bytes_up"] for row in made),
        **counts,
    }


def _settings(options: Namespace, way: str, output: Path) -> RunSettings:
    clients = options.clients
    rounds = 2 if options.quick else options.rounds
    waits = way == WAYS[0]
    own: dict[str, Any] = {
        "seed": options.seed,
        "output": str(output),
        "machine": {"threads": options.threads or "auto"},
        "federation": {"rounds": max(1, rounds // SLOWER) if waits else rounds},
        "stragglers": {
            "min_updates": clients if waits else clients - max(1, clients // 10),
            "carry": way == WAYS[2],
            "speeds": {"slow_share": 0.1, "slow_factor": 10.0},
        },
    }
    layers: list[dict[str, Any]] = [TABLES, *([QUICK] if options.quick else []), own]
    settings = setting.settings("world", *layers)
    split = SplitTable.model_validate({"by": "dirichlet", "alpha": 1.0, "clients": clients})
    return overridden(settings.model_copy(update={"split": split}), options.more)


if __name__ == "__main__":
    sys.exit(main())
