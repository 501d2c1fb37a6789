"""What federation costs: the wall time of the rounds against the time spent inside tuning.

20 rounds of 10 clients through `Run.rounds`, with checkpoints and log written as in any run. The clock
that counts as tuning runs inside `model.tune.tune` alone. Held-out scoring happens before the first round
and after the last, and is set apart: it is a choice and not a cost of federation. All the rest is overhead:
broadcasting, checking and averaging updates, the aggregation gap, saving, logging.
"""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from types import ModuleType
from typing import Any

from benchmarks import common, setting
from benchmarks.common import Figures, Table
from shepherd.run import checkpoint
from shepherd.run.opening import open_run
from shepherd.settings import RunSettings
from shepherd.training import score, tune

TARGET = 0.05  # of the time inside tuning


def main(arguments: Sequence[str] | None = None) -> int:
    parser = common.parser(__doc__)
    parser.add_argument("--on", choices=setting.SETTINGS, default="world", help="default world: the demo's")
    parser.add_argument("--rounds", type=int, default=20, help="default 20")
    parser.add_argument("--steps", type=int, default=8, help="optimiser steps a visit (default 8)")
    return common.run(parser.parse_args(arguments), measure, tables)


def measure(options: Namespace) -> Figures:
    with TemporaryDirectory() as scratch:
        settings = _settings(options, Path(scratch) / "run")
        with (
            closing(open_run(settings)) as run,
            timed(tune, "tune") as tuning,
            timed(score, "losses") as scoring,
            timed(checkpoint, "save") as saving,
        ):
            began = perf_counter()
            clients = [len(row["cohort"]) for _, row in run.rounds()]
            wall = perf_counter() - began
    clocks = {"tuning": tuning, "scoring": scoring, "checkpoints": saving}
    seconds = {name: clock.seconds for name, clock in clocks.items()}
    rounds = wall - seconds["scoring"]
    overhead = rounds - seconds["tuning"]
    return {
        "on": options.on,
        "rounds": len(clients),
        "clients_a_round": min(clients),
        "steps_a_visit": settings.tuning.max_steps,
        "seconds": {"wall": wall, **seconds, "rounds": rounds, "overhead": overhead},
        "overhead_share": overhead / seconds["tuning"],
        "target": TARGET,
    }


def _settings(options: Namespace, output: Path) -> RunSettings:
    rounds, steps = (2, 1) if options.quick else (options.rounds, options.steps)
    few = {"batch_size": 2} if options.quick else {}
    return setting.settings(
        options.on,
        {
            "seed": options.seed,
            "output": str(output),
            "data": {"limit": 40} if options.quick else {},
            "federation": {"rounds": rounds},
            "selection": {"share": 1.0},
            "tuning": {"max_steps": steps, **few},
            # tuning is timed in this process
            "machine": {"workers": 1, "threads": options.threads or "auto"},
            "evaluation": {"every": rounds, "examples": 16, "answers": 0},
        },
    )


@dataclass(slots=True)
class Clock:
    """Seconds inside one function so far."""

    seconds: float = 0.0


@contextmanager
def timed(module: ModuleType | type, name: str) -> Iterator[Clock]:
    """Clock every call of `module.name` that goes through the module, and put the function back."""
    function: Callable[..., Any] = getattr(module, name)
    clock = Clock()

    @wraps(function)
    def clocked(*args: Any, **options: Any) -> Any:
        began = perf_counter()
        try:
            return function(*args, **options)
        finally:
            clock.seconds += perf_counter() - began

    setattr(module, name, clocked)
    try:
        yield clock
    finally:
        setattr(module, name, function)


def tables(figures: Figures) -> list[Table]:
    tuning = figures["seconds"]["tuning"]
    rows = [
        (label, f"{figures['seconds'][name]:.2f}", common.share(figures["seconds"][name] / tuning))
        for label, name in (
            ("inside tuning", "tuning"),
            ("overhead", "overhead"),
            ("  of it, checkpoints", "checkpoints"),
            ("rounds: tuning and overhead", "rounds"),
            ("scoring, set apart", "scoring"),
        )
    ]
    title = f"{figures['rounds']} rounds of {figures['clients_a_round']} clients ({figures['on']})"
    within = "within" if figures["overhead_share"] <= TARGET else "above"
    note = f"overhead {common.share(figures['overhead_share'])}, {within} the target of {TARGET:.0%}"
    return [Table(title, ("", "seconds", "of tuning"), rows, (note,))]


if __name__ == "__main__":
    sys.exit(main())
