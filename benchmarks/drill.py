"""What each aggregation stands: 30 % bad clients, every attack, every rule; and what it costs without one.

    python -m benchmarks.drill [--share 0.3] [--keep FOLDER] [--more KEY=VALUE ...]

Ten clients of the embedded world, all asked in each round, by `shepherd drill`. With --keep a drill that was
stopped goes on. The command passes if every rule but the mean ends each attack on updates at a held-out loss
below the mean's, or the mean could not go on.
"""

from __future__ import annotations

import json
import sys
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks import common, setting
from benchmarks.common import Figures, Table
from shepherd import world
from shepherd.core import seed_for
from shepherd.drill.drilling import Drill, DrillSpec, drill, write
from shepherd.overrides import overridden
from shepherd.settings import RunSettings, SplitTable

TABLES = {
    "data": {"limit": 400, "holdout": 0.1},
    "selection": {"share": 1.0},
    "federation": {"rounds": 10},
    "tuning": {"max_steps": 24, "batch_size": 4},
    "evaluation": {"examples": 200, "answers": 200, "max_new_tokens": 24},
}
QUICK = {
    "data": {"limit": 40},
    "federation": {"rounds": 1},
    "tuning": {"max_steps": 1},
    "evaluation": {"examples": 8, "answers": 4, "max_new_tokens": 4},
}
QUICK_SPEC: dict[str, Any] = {"attacks": ("sign_flip",), "rules": ("mean", "coordinate_median")}
ROOT_EXAMPLES = 12
"""Of each category, for the server: examples that no client has."""
ON_UPDATES = ("sign_flip", "scaling", "noise")
"""Attacks under which a mean must lose."""


def main(arguments: Sequence[str] | None = None) -> int:
    parser = common.parser(__doc__)
    parser.add_argument("--share", type=float, default=0.3, help="of bad clients (default 0.3)")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="keep the drill there, and go on with it")
    parser.add_argument("--more", nargs="+", default=[], metavar="KEY=VALUE", help="changes of the run file")
    return common.run(parser.parse_args(arguments), measure, tables)


def measure(options: Namespace) -> Figures:
    """Drill every rule under every attack; raises Missing if the data are not there."""
    with TemporaryDirectory() as scratch:
        place = options.keep or Path(scratch)
        place.mkdir(parents=True, exist_ok=True)
        settings = _settings(options, _root(place / "root.jsonl", options.seed))
        spec = DrillSpec(share=options.share, **(QUICK_SPEC if options.quick else {}))
        found = drill(settings, place / "drill", spec)
        write(found)
    return {**found.row, "passed": options.quick or _stands(found)}


def tables(figures: Figures) -> list[Table]:
    """A table for each measure: rules by attacks."""
    attacks, rules = list(figures["attacks"]), figures["rules"]
    by = {(row["attack"], row["rule"]): row for row in figures["rows"]}
    title = f"{len(figures['bad'])} of {figures['clients']} clients bad, {figures['rounds']} rounds"

    def table(key: str, what: str, form: str) -> Table:
        cells = [
            [
                rule,
                *("–" if (value := by[name, rule][key]) is None else format(value, form) for name in attacks),
            ]
            for rule in rules
        ]
        return Table(title=f"{what} ({title})", columns=["rule", *attacks], rows=cells)

    return [
        table("loss", "Held-out loss, nats a token", ".3f"),
        table("right", "Share of right answers", ".1%"),
        table("backdoor", "Share of answers that the backdoor planted", ".1%"),
        table("failures", "Counted failures", "d"),
        Table(title="In words", columns=["says"], rows=[[sentence] for sentence in figures["says"]]),
    ]


def _settings(options: Namespace, root: Path) -> RunSettings:
    own: dict[str, Any] = {
        "seed": options.seed,
        "machine": {"threads": options.threads or "auto"},
        "data": {"root": str(root)},
    }
    layers: list[dict[str, Any]] = [TABLES, *([QUICK] if options.quick else []), own]
    settings = setting.settings("world", *layers)
    clients = 5 if options.quick else 10
    split = SplitTable.model_validate({"by": "dirichlet", "alpha": 1.0, "clients": clients})
    return overridden(settings.model_copy(update={"split": split}), options.more)


def _root(file: Path, seed: int) -> Path:
    """A file of the server's own examples, of another draw of the world than the clients'."""
    if not file.is_file():
        rows = world.rows(world.build(world.SEED), ROOT_EXAMPLES, seed_for(seed, "root"))
        file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf8")
    return file


def _stands(found: Drill) -> bool:
    loss = {(row["attack"], row["rule"]): row["loss"] for row in found.row["rows"]}
    mean, *others = found.row["rules"]
    return all(
        loss[name, mean] is None or (loss[name, each] is not None and loss[name, each] < loss[name, mean])
        for name in ON_UPDATES
        for each in others
    )


if __name__ == "__main__":
    sys.exit(main())
