"""Is federation worth it? FedIT's table: base, clients alone, all data in one place, federated.

On the embedded world three clients with two categories each tune alone, as in the paper, and answers are
checked by code. On Dolly all ten clients tune alone, and the measure is the held-out response loss; on
SmolLM2, a pretrained base with the same clients, also ROUGE-L of the answers. The centralised arm is trained
twice: on as many examples as the federated one saw, and for as many optimiser steps, like the local arms;
--match steps or --match examples matches every arm in that way. `alone` is the time of the federated run of
the first seed, `all` that of the whole comparison with its scoring.
"""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any

from benchmarks import common, setting
from benchmarks.common import Figures, Table
from shepherd.compare.arms import CompareSpec
from shepherd.compare.comparison import compare
from shepherd.run.run import Run
from shepherd.settings import RunSettings

LOCALS = {"world": ("client-3", "client-6", "client-8"), "dolly": None, "smollm2": None}
SHARES = ("right", "exact", "f1", "rouge_l")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = common.parser(__doc__)
    parser.add_argument("--on", choices=setting.SETTINGS, default="world", help="default world")
    parser.add_argument("--seeds", type=int, default=3, help="default 3")
    parser.add_argument("--match", choices=("both", "steps", "examples"), default="both", help="default both")
    parser.add_argument("--rounds", type=int, help="default: the run file's, 5 on Dolly")
    parser.add_argument(
        "--steps", type=int, help="optimiser steps of a visit; default: the run file's, 6 on Dolly"
    )
    parser.add_argument(
        "--answers", type=int, help="number of held-out examples to answer; default: 400 on the world"
    )
    parser.add_argument("--output", type=Path, help="keep the run folder here (default: delete it)")
    return common.run(parser.parse_args(arguments), measure, tables)


def measure(options: Namespace) -> Figures:
    with TemporaryDirectory() as scratch:
        settings = _settings(options, options.output or Path(scratch) / "compare")
        asked = CompareSpec(
            locals=LOCALS[options.on], match=options.match, seeds=1 if options.quick else options.seeds
        )
        took: list[float] = []
        began = perf_counter()
        found = compare(settings, asked, train=lambda opened: took.append(_train_timed(opened)))
        seconds = {"alone": took[0] if took else None, "all": perf_counter() - began}
    kept = {name: value for name, value in found.items() if name not in ("samples", "judge")}
    return {**kept, "seconds": seconds}


def _train_timed(opened: Callable[[], Run]) -> float:
    began = perf_counter()
    with opened() as run:
        for _, row in run.rounds():
            print(f"round {row['round']} of {run.until}: loss {row['loss']:.4f}", flush=True)
        run.finish(answer=False)
    return perf_counter() - began


def _settings(options: Namespace, output: Path) -> RunSettings:
    rounds = 2 if options.quick else options.rounds or (5 if options.on == "dolly" else None)
    asked: dict[str, Any] = {
        "seed": options.seed,
        "output": str(output),
        "data": {"limit": 100} if options.quick else {},
        "federation": {"rounds": rounds} if rounds else {},
        "machine": {"threads": options.threads or "auto"},
        "evaluation": {"answers": options.answers} if options.answers is not None else {},
    }
    if options.quick:
        asked["tuning"] = {"max_steps": 1}
        asked["evaluation"] = {"answers": 8, "examples": 16, "max_new_tokens": 8}
    elif options.on == "dolly":
        asked["tuning"] = {"max_steps": options.steps or 6}
    elif options.steps:
        asked["tuning"] = {"max_steps": options.steps}
    return setting.settings(options.on, asked)


def tables(figures: Figures) -> list[Table]:
    arms = figures["arms"]
    names = [name for name in (*SHARES, "loss") if name in arms[0]["measures"]]
    chief = "right" if "right" in names else "loss"
    first = [name for name in names if name in ("right", "loss")]
    columns = ("arm", "steps", "examples", *first, f"federated/arm, {chief}", "difference", "Holm p")
    rows = [_row(arm, first, _difference(figures, arm["name"], chief)) for arm in arms]
    seconds = figures["seconds"]
    alone = f"{seconds['alone']:.0f} s" if seconds["alone"] else "made before"
    notes = (
        *figures["says"],
        f"the federated run alone {alone}, the whole comparison {seconds['all']:.0f} s",
    )
    title = f"{len(figures['seeds'])} seeds, matched by {figures['match']}; 95% intervals"
    return [
        Table(title, columns, rows, notes),
        *_texts(arms, names),
        *_categories(figures, chief),
        *_clients(arms),
    ]


def _texts(arms: Sequence[Mapping[str, Any]], names: Sequence[str]) -> list[Table]:
    """Table of the similarity of answers to the reference."""
    alike = [name for name in names if name in ("exact", "f1", "rouge_l")]
    rows = [[arm["name"], *(_interval(arm["measures"][name], True) for name in alike)] for arm in arms]
    return [Table("answers against the reference, %", ("arm", *alike), rows)] if alike else []


def _clients(arms: Sequence[Mapping[str, Any]]) -> list[Table]:
    """Table of the held-out loss in each client's own mix of categories."""
    clients = sorted(arms[0]["client_loss"])
    rows = [[arm["name"], *(f"{arm['client_loss'][client]:.3f}" for client in clients)] for arm in arms]
    return [Table("loss by client, in its own mix of categories", ("arm", *clients), rows)] if clients else []


def _difference(figures: Figures, arm: str, measure: str) -> Mapping[str, Any] | None:
    found = [row for row in figures["differences"] if (row["arm"], row["measure"]) == (arm, measure)]
    return found[0] if found else None


def _row(arm: Mapping[str, Any], names: Sequence[str], against: Mapping[str, Any] | None) -> list[str]:
    trained = arm["trained"] or {"steps": 0, "examples": 0}
    amounts = ["-" if trained[key] is None else f"{trained[key]:,}" for key in ("steps", "examples")]
    cells = [_interval(arm["measures"][name], name in SHARES) for name in names]
    differences = ["", "", ""]
    if against:
        share = against["measure"] in SHARES
        differences = [
            _interval(against["relative"], False),
            _interval(against["difference"], share),
            f"{against['p_holm']:.4f}",
        ]
    return [arm["name"], *amounts, *cells, *differences]


def _interval(row: Mapping[str, Any], share: bool) -> str:
    def number(value: float | None) -> str:
        return "?" if value is None else f"{100 * value:.1f}" if share else f"{value:.3f}"

    return f"{number(row['value'])} ({number(row['low'])} to {number(row['high'])})"


def _categories(figures: Figures, chief: str) -> list[Table]:
    """Tables with one arm per column, six arms per table."""
    arms = figures["arms"]
    names = sorted(arms[0]["category"][chief])
    made = []
    for start in range(0, len(arms), 6):
        part = arms[start : start + 6]
        rows = [
            [name, *(_interval(arm["category"][chief][name], chief in SHARES) for arm in part)]
            for name in names
        ]
        made.append(Table(f"{chief} by category", ("category", *(arm["name"] for arm in part)), rows))
    return made


if __name__ == "__main__":
    sys.exit(main())
