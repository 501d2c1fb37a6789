"""How fast one process tunes, and in how much memory, by the tokens of a pass and the clients at once.

    python -m benchmarks.passes [--base FOLDER] [--dtype float32] [--threads 1]

Each cell is a process of its own, which tunes one optimiser step of its clients and throws the result away;
the cells take turns. Dolly's clients; `auto` marks the tokens of a pass that a run would choose. What stays
the same from cell to cell is the work: every client takes the same examples in each.
"""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from time import perf_counter

import numpy as np

from benchmarks import common, setting
from benchmarks.common import Figures, Table
from benchmarks.sides import Make, sides
from benchmarks.work import Measured, Work, device_bytes
from shepherd import plugins
from shepherd.core import Adapter, Broadcast, seed_for
from shepherd.data import pipeline
from shepherd.machine import malloc, memory
from shepherd.model import base as bases
from shepherd.model import meta_shapes
from shepherd.training import tune
from shepherd.training.tune import Visit

PASSES = (256, 512, 1024, 2048, 4096)
STACKS = (1, 2, 5)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = common.parser(__doc__)
    parser.add_argument("--base", help="a folder (default: SmolLM2-135M, see tools/get_smollm2.py)")
    parser.add_argument("--dtype", default="auto", choices=("auto", "float32", "bfloat16"), help="the base's")
    parser.add_argument("--batch", type=int, default=4, help="examples of a client's step (default 4)")
    parser.add_argument("--repeats", type=int, default=2, help="turns of each cell (default 2)")
    parser.add_argument("--tokens", type=int, nargs="+", default=PASSES, help="of a pass")
    parser.add_argument("--clients", type=int, nargs="+", default=STACKS, help="tuned at once")
    return common.run(parser.parse_args(arguments), measure, tables)


def measure(options: Namespace) -> Figures:
    if options.quick:
        options.tokens, options.clients, options.repeats, options.batch = (64, 256), (1, 2), 1, 2
    quick = {"data": {"limit": 40}} if options.quick else {"data": {"limit": 200}}
    base = options.base or (None if options.quick else str(setting.pretrained()))
    settings = setting.settings(
        "dolly",
        quick,
        {
            "seed": options.seed,
            "model": {"dtype": options.dtype, **({"base": base} if base else {})},
            "tuning": {"max_steps": 1, "batch_size": options.batch},
            "machine": {"threads": options.threads or 1},
        },
    )
    ready = pipeline.prepare(settings, bases.load_tokenizer(settings.model))
    shapes = meta_shapes.shapes(settings.model.base, settings.adapter)
    rng = np.random.default_rng(0)
    start = {name: rng.normal(0, 0.02, shape) * (".lora_A." in name) for name, shape in shapes.items()}
    work = Work(
        settings=settings,
        clients=dict(list(ready.clients.items())[: max(options.clients)]),
        start=Adapter(start),
    )
    cells: list[Figures] = []
    for count in options.clients:
        part = Work(settings=settings, clients=dict(list(work.clients.items())[:count]), start=work.start)
        makes: dict[str, Make] = {f"engine {size}": partial(_cell, size=size) for size in options.tokens}
        with sides(makes, part) as turns:
            taken: dict[str, list[Measured]] = {name: [] for name in turns}
            for name in [*turns] * (options.repeats + 1):
                taken[name].append(turns[name](1))
        for size, measured in zip(options.tokens, taken.values(), strict=True):
            seconds = [each.seconds for each in measured[1:]]  # the first one warms up
            cells.append(
                {
                    "clients": count,
                    "pass_tokens": size,
                    "tokens": part.tokens,
                    "seconds": seconds,
                    "tokens_per_second": part.tokens / median(seconds),
                    "peak_bytes": max(each.peak_bytes for each in measured),
                    "auto": size == measured[0].micro_batch_tokens,
                    "dtype": measured[0].dtype,
                }
            )
    return {"base": Path(settings.model.base).name, "threads": settings.machine.threads, "cells": cells}


def _cell(work: Work, *, size: int) -> Callable[[Work], Measured]:
    malloc.keep_pages()
    memory.use_threads(work.settings.machine.threads)
    base = bases.load(work.settings.model, work.settings.adapter, device=work.settings.machine.device)
    algorithm = plugins.algorithm(work.settings.algorithm)
    tuning = work.settings.tuning

    def visit_all(asked: Work) -> Measured:
        visits = [
            Visit(client=name, data=data, batches=asked.steps(name), seed=seed_for(0, name))
            for name, data in asked.clients.items()
        ]
        broadcast = Broadcast(round=0, adapter=asked.start, seed=0)
        job = tune.Job(
            broadcast=broadcast,
            algorithm=algorithm,
            visits=visits,
            tuning=tuning,
            learning_rate=tuning.learning_rate,
            micro_batch_tokens=size,
        )
        began = perf_counter()
        tuned = tune.tune(base, job)
        return Measured(
            seconds=perf_counter() - began,
            adapter=asked.start,
            loss=tuned[0].report.loss,
            peak_bytes=device_bytes(base.device),
            dtype=str(base.dtype).removeprefix("torch."),
            micro_batch_tokens=memory.micro_batch(base),
        )

    return visit_all


def tables(figures: Figures) -> list[Table]:
    rows = [
        (
            str(cell["clients"]),
            common.count(cell["pass_tokens"]) + " (auto)" * cell["auto"],
            common.count(cell["tokens"]),
            " ".join(f"{seconds:.2f}" for seconds in cell["seconds"]),
            f"{cell['tokens_per_second']:.0f}",
            f"{cell['peak_bytes'] / 2**30:.2f}",
        )
        for cell in figures["cells"]
    ]
    dtype, threads = figures["cells"][0]["dtype"], figures["threads"]
    title = f"{figures['base']}, {dtype}, one process, {threads} thread{'s' * (threads != 1)}"
    columns = ("clients at once", "tokens of a pass", "tokens", "seconds", "tokens/s", "GiB")
    return [Table(title, columns, rows)]


if __name__ == "__main__":
    sys.exit(main())
