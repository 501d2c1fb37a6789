"""Federated preference tuning against clients alone and all data in one place, on the embedded world.

    python -m benchmarks.preference [--rounds 4] [--steps 24] [--output FOLDER] [--json FILE]

The setting is the demo's, on pairs of a right and a wrong answer, in two stages: supervised tuning on the
right answers, then DPO from that adapter, which is its reference. All arms begin from the federated adapter
of the first stage (`start`), so the table compares the second one alone: the share of held-out pairs whose
right answer is preferred, the reward margin, and the right answers given, before and after. The centralised
arm is trained on as many pairs as the federated one saw, and for as many steps.
"""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any

from benchmarks import common, setting
from benchmarks.common import Figures, Table
from shepherd.compare.arms import CompareSpec
from shepherd.compare.comparison import compare
from shepherd.settings import PREFERENCES, RunSettings

LOCALS = ("client-3", "client-6", "client-8")
MEASURES = {"preference": "prefers right %", "margin": "margin, nats", "right": "answers right %"}


def main(arguments: Sequence[str] | None = None) -> int:
    """Train the stages and the arms, and print the table."""
    parser = common.parser(__doc__)
    parser.add_argument("--rounds", type=int, default=4, help="rounds of each stage (default 4)")
    parser.add_argument("--steps", type=int, default=24, help="steps of a visit by DPO (default 24)")
    parser.add_argument("--sft-steps", type=int, default=64, help="steps of a visit before (default 64)")
    parser.add_argument("--rate", type=float, default=5e-4, help="learning rate of DPO (default 5e-4)")
    parser.add_argument("--beta", type=float, default=0.1, help="beta of DPO (default 0.1)")
    parser.add_argument("--limit", type=int, default=300, help="pairs of each category (default 300)")
    parser.add_argument("--answers", type=int, default=160, help="held-out instructions to answer (160)")
    parser.add_argument("--seeds", type=int, default=1, help="seeds of the second stage (default 1)")
    parser.add_argument("--output", type=Path, help="keep the run folder here (default: delete it)")
    return common.run(parser.parse_args(arguments), measure, tables)


def measure(options: Namespace) -> Figures:
    """The comparison of the second stage."""
    began = perf_counter()
    with TemporaryDirectory() as scratch:
        settings = _settings(options, options.output or Path(scratch) / "run")
        found = compare(settings, CompareSpec(locals=LOCALS, seeds=options.seeds))
    kept = {name: value for name, value in found.items() if name not in ("samples", "judge")}
    return {**kept, "seconds": perf_counter() - began}


def _settings(options: Namespace, output: Path) -> RunSettings:
    quick = options.quick
    rounds = 1 if quick else options.rounds
    sft = {
        "name": "sft",
        "federation": {"rounds": rounds},
        "tuning": {"max_steps": 1 if quick else options.sft_steps},
    }
    dpo = {
        "name": "dpo",
        "federation": {"rounds": rounds},
        "tuning": {
            "objective": {"name": "dpo", "beta": options.beta},
            "max_steps": 1 if quick else options.steps,
            "batch_size": 4,
            "learning_rate": options.rate,
        },
    }
    asked: dict[str, Any] = {
        "seed": options.seed,
        "output": str(output),
        "data": {"source": PREFERENCES, "limit": 20 if quick else options.limit},
        "machine": {"threads": options.threads or "auto"},
        "evaluation": {
            "answers": 8 if quick else options.answers,
            "examples": 16 if quick else 160,
            "every": rounds,
            **({"max_new_tokens": 4} if quick else {}),
        },
        "stages": [sft, dpo],
    }
    return setting.settings("world", asked)


def tables(figures: Figures) -> list[Table]:
    """The arms with their intervals, and what the differences say."""
    arms = figures["arms"]
    names = [name for name in MEASURES if name in arms[0]["measures"]]
    rows = [_row(arm, names, figures) for arm in arms]
    columns = (
        "arm",
        "steps",
        "pairs",
        *(MEASURES[name] for name in names),
        "federated - arm, prefers",
        "Holm p",
    )
    title = f"{figures['loss_examples']} held-out pairs, {len(figures['seeds'])} seed(s); 95% intervals"
    return [Table(title, columns, rows, (*figures["says"], f"all of it {figures['seconds']:.0f} s"))]


def _row(arm: Mapping[str, Any], names: Sequence[str], figures: Figures) -> list[str]:
    trained = arm["trained"] or {"steps": 0, "examples": 0}
    cells = [_interval(arm["measures"][name], 1.0 if name == "margin" else 100.0) for name in names]
    against = [
        row for row in figures["differences"] if (row["arm"], row["measure"]) == (arm["name"], "preference")
    ]
    last = (
        [_interval(against[0]["difference"], 100.0), f"{against[0]['p_holm']:.4f}"] if against else ["", ""]
    )
    return [arm["name"], f"{trained['steps']:,}", f"{trained['examples']:,}", *cells, *last]


def _interval(row: Mapping[str, Any], factor: float) -> str:
    def number(value: float | None) -> str:
        return "?" if value is None else f"{factor * value:.{1 if factor > 1 else 2}f}"

    return f"{number(row['value'])} ({number(row['low'])} to {number(row['high'])})"


if __name__ == "__main__":
    sys.exit(main())
