"""Two Ray actors against two worker processes: the tuning of the same clients, in turns, on one machine.

Both have a copy of the base in each process, one thread each, and get the same jobs, one client a job. The
results must have the same bits. What each takes until its first job can begin is told apart.
"""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Sequence
from contextlib import ExitStack, closing
from statistics import median
from time import perf_counter

import numpy as np

from benchmarks import common, setting
from benchmarks.common import Figures, Table
from shepherd.algorithms import fedavg
from shepherd.core import Broadcast
from shepherd.data import pipeline
from shepherd.machine import malloc, memory
from shepherd.machine.executors import Executor, Processes, RayActors
from shepherd.model import base as bases
from shepherd.model import lora
from shepherd.model.base import Base
from shepherd.settings import RayTable
from shepherd.training.tune import Job, Progress, TuningResult, Visit

WORKERS = 2


def main(arguments: Sequence[str] | None = None) -> int:
    parser = common.parser(__doc__)
    parser.add_argument("--on", choices=setting.SETTINGS, default="dolly", help="default dolly: novella-8m")
    parser.add_argument("--turns", type=int, default=5, help="default 5")
    parser.add_argument("--steps", type=int, default=8, help="optimiser steps a client (default 8)")
    return common.run(parser.parse_args(arguments), measure, tables)


def measure(options: Namespace) -> Figures:
    malloc.keep_pages()
    limit = 40 if options.quick else 1000
    settings = setting.placed(setting.settings(options.on, {"data": {"limit": limit}}))
    turns, steps = (1, 1) if options.quick else (options.turns, options.steps)
    base = bases.load(settings.model, settings.adapter, device="cpu")
    prepared = pipeline.prepare(settings, base.tokenizer)
    rng = np.random.default_rng(options.seed)
    visits = [
        Visit(
            client=name,
            data=data,
            batches=[rng.integers(len(data), size=settings.tuning.batch_size) for _ in range(steps)],
        )
        for name, data in prepared.clients.items()
    ]
    jobs = [
        Job(
            broadcast=Broadcast(round=0, adapter=lora.first(base.targets, base.adapter.rank, 0), seed=0),
            algorithm=fedavg.ALGORITHM,
            visits=[visit],
            tuning=settings.tuning,
            learning_rate=1e-3,
            micro_batch_tokens=memory.micro_batch(base),
        )
        for visit in visits
    ]
    tokens = sum(visit.tokens for visit in visits)
    with ExitStack() as stack:
        sides: dict[str, Executor] = {
            "worker processes": stack.enter_context(closing(Processes(WORKERS, 1, base))),
            "Ray actors": stack.enter_context(closing(RayActors(RayTable(actors=WORKERS), WORKERS, base))),
        }
        start = {name: _seconds(side, jobs[:0])[0] + _ready(side) for name, side in sides.items()}
        results = {name: _seconds(side, jobs)[1] for name, side in sides.items()}  # also warms up
        seconds: dict[str, list[float]] = {name: [] for name in sides}
        for turn in range(turns):
            for name in list(sides) if turn % 2 else list(reversed(sides)):
                seconds[name].append(_seconds(sides[name], jobs)[0])
    ours, rays = seconds.values()
    return {
        "on": options.on,
        "jobs": len(jobs),
        "tokens": tokens,
        "start_seconds": start,
        "seconds": seconds,
        "ratio": median(ours) / median(rays),
        "ratios": [a / b for a, b in zip(ours, rays, strict=True)],
        "passed": results["worker processes"] == results["Ray actors"],
    }


def _seconds(side: Executor, jobs: Sequence[Job]) -> tuple[float, list[Sequence[TuningResult]]]:
    began = perf_counter()
    found = list(side.tuned(jobs, _unseen))
    return perf_counter() - began, found  # type: ignore[return-value]


def _ready(side: Executor) -> float:
    """Seconds until every worker has its base."""
    began = perf_counter()
    list(side.each(_nothing, range(4 * WORKERS)))
    return perf_counter() - began


def _nothing(base: Base, item: int) -> int:
    return item


def _unseen(number: int, progress: Progress) -> None:
    pass


def tables(figures: Figures) -> Sequence[Table]:
    rows = []
    for name, seconds in figures["seconds"].items():
        speeds = [figures["tokens"] / each for each in seconds]
        spread = f"{median(speeds):,.0f} ({min(speeds):,.0f} to {max(speeds):,.0f})"
        rows.append((name, f"{figures['start_seconds'][name]:.1f} s", spread))
    least, most = min(figures["ratios"]), max(figures["ratios"])
    notes = [
        f"{figures['jobs']} jobs of one client, {figures['tokens']:,} tokens; median (least to most)",
        f"Ray's speed is {figures['ratio']:.2f} times that of the processes ({least:.2f} to {most:.2f})",
        f"same bits: {'yes' if figures['passed'] else 'NO'}",
    ]
    return [Table("Two workers", ("", "until ready", "tokens a second"), rows, notes=notes)]


if __name__ == "__main__":
    sys.exit(main())
