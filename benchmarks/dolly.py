"""Dolly with ten ready-made clients and a small real base: held-out response loss by category, per round.

Row 0 is the untuned base. A category's loss is the mean over its trained tokens, in nats; `mean` is the
mean over categories. `seen` is the share of its examples that a client has trained on so far: the smallest
of all clients, and the mean.
"""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Mapping, Sequence
from contextlib import closing
from itertools import pairwise
from math import ceil
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks import common, setting
from benchmarks.common import Figures, Table
from shepherd.data import pipeline
from shepherd.run.log import read_rows
from shepherd.run.opening import open_run
from shepherd.settings import RunSettings


def main(arguments: Sequence[str] | None = None) -> int:
    parser = common.parser(__doc__)
    parser.add_argument("--rounds", type=int, default=10, help="default 10")
    parser.add_argument(
        "--passes",
        type=float,
        default=1.0,
        help="passes over each client's data in all rounds together (default 1; 10 is an epoch per round)",
    )
    parser.add_argument("--steps", type=int, help="optimiser steps per visit, instead of --passes")
    parser.add_argument(
        "--heldout", type=int, default=400, help="number of held-out examples scored (default 400)"
    )
    parser.add_argument("--output", type=Path, help="keep the run folder here (default: delete it)")
    return common.run(parser.parse_args(arguments), measure, tables)


def measure(options: Namespace) -> Figures:
    with TemporaryDirectory() as scratch:
        settings = _settings(options, options.output or Path(scratch) / "dolly")
        with closing(open_run(settings)) as run:
            for _, row in run.rounds():
                print(f"round {row['round']} of {run.until}: held-out loss {row['heldout']['loss']:.4f}")
            clients = {name: len(data) for name, data in run.prepared.clients.items()}
            run.finish()
            rows = [_figures(row) for row in read_rows(run.folder)]
    return {
        "clients": clients,
        "heldout_examples": settings.evaluation.examples,
        "steps_a_visit": settings.tuning.max_steps,
        "rounds": rows,
        "rounds_that_fell": sum(after["loss"] < before["loss"] for before, after in pairwise(rows)),
    }


def _settings(options: Namespace, output: Path) -> RunSettings:
    rounds, heldout = (2, 16) if options.quick else (options.rounds, options.heldout)
    asked: dict[str, Any] = {
        "seed": options.seed,
        "output": str(output),
        "data": {"limit": 200} if options.quick else {},
        "federation": {"rounds": rounds},
        "machine": {"threads": options.threads or "auto"},
        "evaluation": {"examples": heldout},
    }
    settings = setting.settings("dolly", asked)
    steps = 1 if options.quick else options.steps or _steps(settings, options.passes)
    return settings.model_copy(update={"tuning": settings.tuning.model_copy(update={"max_steps": steps})})


def _steps(settings: RunSettings, passes: float) -> int:
    """Optimiser steps per visit with which all rounds together make `passes` over the largest client."""
    largest = max(len(indices) for indices in pipeline.divide(settings).clients.values())
    batches = -(-largest // settings.tuning.batch_size)
    return max(1, ceil(passes * batches / settings.federation.rounds))


def _figures(row: Mapping[str, Any]) -> Figures:
    coverage = list(row.get("coverage", {"": 0.0}).values())
    return {
        "round": row["round"],
        "loss": row["heldout"]["loss"],
        "category": row["heldout"]["category"],
        "training_loss": row.get("loss"),
        "coverage_min": min(coverage),
        "coverage_mean": sum(coverage) / len(coverage),
        "gap": row.get("gap"),
        "trained_tokens": row.get("tokens", {}).get("trained", 0),
        "seconds": row.get("seconds"),
    }


def tables(figures: Figures) -> list[Table]:
    names = sorted(figures["rounds"][0]["category"])
    short = [name.replace("information_extraction", "extraction").replace("_", " ") for name in names]
    columns = ("round", *short, "mean", "seen, least", "seen, mean")
    rows = [
        (
            str(row["round"]),
            *(f"{row['category'][name]:.3f}" for name in names),
            f"{row['loss']:.3f}",
            common.share(row["coverage_min"]),
            common.share(row["coverage_mean"]),
        )
        for row in figures["rounds"]
    ]
    fell, rounds = figures["rounds_that_fell"], len(rows) - 1
    note = f"{figures['steps_a_visit']} steps a visit; the mean fell in {fell} of {rounds} rounds"
    return [Table("Dolly, ten clients: held-out response loss, nats a token", columns, rows, (note,))]


if __name__ == "__main__":
    sys.exit(main())
