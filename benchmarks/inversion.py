"""Gradient inversion: which tokens of a client's examples the span check reads from its LoRA update.

    python -m benchmarks.inversion [--repeats 2] [--json FILE]

On the embedded base in float32 with examples of the embedded world. A client makes one step of SGD, except
where a row says otherwise, from an adapter that has been tuned a little on other examples, or from a fresh
one, whose B is zero. Each figure is the mean over `--repeats` batches, no two of which share an example.
"""

from __future__ import annotations

import math
import sys
from argparse import Namespace
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import count
from statistics import fmean
from time import perf_counter
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks import common, setting
from benchmarks.common import Figures, Table
from shepherd.algorithms import fedavg
from shepherd.audit import inversion
from shepherd.audit.inversion import Inversion
from shepherd.audit.inversion_spans import BFLOAT16_ROUNDING, FLOAT16_ROUNDING, FLOAT32_ROUNDING
from shepherd.core import Adapter, Broadcast, Payload, Seeded, Update
from shepherd.data import pipeline
from shepherd.data.tokens import Tokens
from shepherd.model import base as bases
from shepherd.model import lora
from shepherd.model.base import Base
from shepherd.overrides import overridden
from shepherd.settings import TuningTable
from shepherd.training import tune
from shepherd.training.local import DEFAULT_TRAINING, LocalTraining
from shepherd.training.objectives import sft
from shepherd.training.optimisers import sgd
from shepherd.transforms import fixed_point

BATCHES = (1, 2, 4, 8, 16, 32)
RANKS = (1, 4, 8, 16, 32, 64)
POINTS = ((1, 16), (4, 64))
"""Batch size and rank of the rows that change one thing."""
SGD = LocalTraining(sgd.build(sgd.Config()), sft.build(sft.Config()))
SGD_RATE, ADAMW_RATE = 0.4, 4e-3
BEGUN_STEPS, BEGUN_BATCH = 4, 8
BITS = fixed_point.Config().bits
ORDERING_S = 6.0
"""Most seconds for putting the tokens of one update in order."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """What a client does before the attacker sees its update, or a mean with it."""

    steps: int = 1
    adamw: bool = False
    clients: int = 1
    clip: float | None = None
    """Factor that the update is shortened by."""
    noise: float = 0.0
    """Noise multiplier: the standard deviation of an entry's noise, as a multiple of the update's length."""
    sent_as: torch.dtype = torch.float32
    """Number type that the update travels in."""
    computed_as: str = "float32"
    """Number type of the base."""
    bits: int = 0
    """Bits of the whole numbers that the attacker sees the sum of, as under [secure]; 0 for none."""


CASES: Mapping[str, Case] = {
    "nothing": Case(),
    "clipped to a tenth of its length": Case(clip=0.1),
    "sent as float16": Case(sent_as=torch.float16),
    "sent as bfloat16": Case(sent_as=torch.bfloat16),
    "base in bfloat16": Case(computed_as="bfloat16"),
    "noise multiplier 0.00001": Case(noise=1e-5),
    "noise multiplier 0.0001": Case(noise=1e-4),
    "noise multiplier 0.001": Case(noise=1e-3),
    "noise multiplier 0.01": Case(noise=1e-2),
    "noise multiplier 0.1": Case(noise=0.1),
    "noise multiplier 1": Case(noise=1.0),
    "mean of 2 clients": Case(clients=2),
    "mean of 4 clients": Case(clients=4),
    "mean of 10 clients": Case(clients=10),
    "1 client in whole numbers": Case(bits=BITS),
    "sum of 3 clients in whole numbers": Case(clients=3, bits=BITS),
    "sum of 10 clients in whole numbers": Case(clients=10, bits=BITS),
    "sum of 30 clients in whole numbers": Case(clients=30, bits=BITS),
    "4 steps of SGD": Case(steps=4),
    "12 steps of SGD": Case(steps=12),
    "1 step of AdamW": Case(adamw=True),
    "12 steps of AdamW": Case(adamw=True, steps=12),
}
ROUNDINGS = {
    torch.float32: FLOAT32_ROUNDING,
    torch.bfloat16: BFLOAT16_ROUNDING,
    torch.float16: FLOAT16_ROUNDING,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Attack updates of every batch size and rank, and of every case."""
    parser = common.parser(__doc__)
    parser.add_argument("--repeats", type=int, default=2, help="batches of each figure (default 2)")
    return common.run(parser.parse_args(arguments), measure, tables)


def measure(options: Namespace) -> Figures:
    """The mean figures of each cell."""
    began = perf_counter()
    victims = Victims(options)
    batches, ranks = ((1, 4), (4, 64)) if options.quick else (BATCHES, RANKS)
    points = ((1, 64),) if options.quick else POINTS
    names = (
        ("nothing", "noise multiplier 1", "sum of 3 clients in whole numbers")
        if options.quick
        else tuple(CASES)
    )
    grids = {
        begun: [
            {"batch": batch, "rank": rank, **victims.mean(Case(), batch, rank, begun == "begun")}
            for batch in batches
            for rank in ranks
        ]
        for begun in ("begun", "fresh")
    }
    cases = [
        {"case": name, "batch": batch, "rank": rank, **victims.mean(CASES[name], batch, rank, True)}
        for batch, rank in points
        for name in names
    ]
    return {**grids, "cases": cases, "tokens": victims.mean_tokens, "seconds": perf_counter() - began}


class Victims:
    """Clients of the embedded world that are tuned on a batch, and attacked."""

    def __init__(self, options: Namespace) -> None:
        settings = overridden(
            setting.settings("world"), (f"data.limit={60 if options.quick else 400}", "evaluation.answers=0")
        )
        self.settings, self.options = setting.placed(settings), options
        self.bases: dict[str, Base] = {}
        prepared = pipeline.prepare(self.settings, self.base("float32").tokenizer)
        pooled = Tokens.pooled(list(prepared.clients.values()))
        order = np.random.default_rng(options.seed).permutation(len(pooled))
        used = BEGUN_STEPS * BEGUN_BATCH
        self.others, self.data = pooled.take(order[:used]), pooled.take(order[used:])
        self.begun: dict[int, Adapter] = {}

    @property
    def mean_tokens(self) -> float:
        """Tokens of an example."""
        return float(self.data.lengths.mean())

    def base(self, dtype: str) -> Base:
        """The embedded base in this number type."""
        if dtype not in self.bases:
            model = self.settings.model.model_copy(update={"dtype": dtype})
            self.bases[dtype] = bases.load(model, self.settings.adapter, device="cpu")
        return self.bases[dtype]

    def mean(self, case: Case, batch: int, rank: int, begun: bool) -> Figures:
        """The mean over the repeats of what the attack recovers."""
        base, start = self.base(case.computed_as), self.start(rank, begun)
        size = batch * case.steps * case.clients
        found = []
        for turn in range(1 if self.options.quick else self.options.repeats):
            first = turn * size
            if first + size > len(self.data):
                break
            data = self.data.take(range(first, first + size))
            found.append(self._attacked(base, start, data, case, batch))
        recall = fmean(each.recall for each in found)
        print(f"batch {batch}, rank {rank}, {size} examples: {recall:.0%} of the tokens", flush=True)
        return _mean(found)

    def start(self, rank: int, begun: bool) -> Adapter:
        """A fresh adapter; or one that was tuned on other examples, so that its B is not zero."""
        fresh = lora.fresh(self.base("float32").targets, rank, self.options.seed)
        if not begun:
            return fresh
        if rank not in self.begun:
            steps = np.split(np.arange(len(self.others)), BEGUN_STEPS)
            visit = tune.Visit(client="others", data=self.others, batches=steps)
            delta = tuned(self.base("float32"), fresh, [visit], adamw=True)[0]
            self.begun[rank] = Adapter({name: fresh[name] + delta[name] for name in fresh})
        return self.begun[rank]

    def _attacked(self, base: Base, start: Adapter, data: Tokens, case: Case, batch: int) -> Inversion:
        each = len(data) // case.clients
        visits = [
            tune.Visit(
                client=f"client-{client}",
                data=part,
                batches=[np.arange(first, first + batch) for first in range(0, each, batch)],
            )
            for client, part in zip(count(), data.split([each] * case.clients), strict=False)
        ]
        deltas = tuned(base, start, visits, adamw=case.adamw)
        mean, rounded = summed(deltas, case.bits, self.options.seed) if case.bits else (_mean_of(deltas), 0.0)
        noise = case.noise * mean.norm()
        rng = np.random.default_rng(self.options.seed)
        sent = Adapter(
            {
                name: _as(case.sent_as, (case.clip or 1.0) * tensor + rng.normal(0, noise, tensor.shape))
                for name, tensor in mean.items()
            }
        )
        rounding = ROUNDINGS[case.sent_as]
        return inversion.recovered(
            base, start, sent, data, noise=noise + rounded, rounding=rounding, seconds=ORDERING_S
        )


def tuned(base: Base, start: Adapter, visits: Sequence[tune.Visit], *, adamw: bool) -> list[Adapter]:
    job = tune.Job(
        broadcast=Broadcast(round=1, adapter=start, seed=0),
        algorithm=fedavg.build(fedavg.Config()),
        visits=visits,
        tuning=TuningTable(),
        learning_rate=ADAMW_RATE if adamw else SGD_RATE,
        micro_batch_tokens=4096,
        training=DEFAULT_TRAINING if adamw else SGD,
    )
    return [result.delta for result in tune.tune(base, job)]


def _mean_of(deltas: Sequence[Adapter]) -> Adapter:
    return Adapter({name: np.mean([delta[name] for delta in deltas], axis=0) for name in deltas[0]})


def summed(deltas: Sequence[Adapter], bits: int, seed: int) -> tuple[Adapter, float]:
    """The mean that is decoded from the sum of these clients' codes, and its deviation from rounding.

    The norm is that of the longest change, so that nothing is clipped.
    """
    norm = max(delta.norm() for delta in deltas)
    transform = fixed_point.build(fixed_point.Config(norm=norm, bits=bits))
    coded = [
        transform.on_client(
            Update(round=1, clients=(f"client-{k}",), delta=delta, weight=1.0), {}, Seeded(seed + k)
        )
        for k, delta in enumerate(deltas)
    ]
    total = Payload({name: sum(each.delta[name] for each in coded) for name in deltas[0]})
    names = tuple(each.client for each in coded)
    arrived = transform.on_arrival(replace(coded[0], clients=names, delta=total), {})
    # a rounding that is equally often up and down by any part of a step has a variance of 1 / 6
    return Adapter(arrived.delta), norm / fixed_point.levels(bits) / math.sqrt(6 * len(deltas))


def _as(dtype: torch.dtype, array: NDArray[Any]) -> NDArray[np.float32]:
    """The array rounded to a number type, as float32."""
    rounded: NDArray[np.float32] = torch.from_numpy(array.astype(np.float32)).to(dtype).float().numpy()
    return rounded


def _mean(found: Sequence[Inversion]) -> Figures:
    rows = [asdict(each) for each in found]
    numbers = {
        name: fmean(row[name] for row in rows)
        for name in ("batch_tokens", "found", "dimensions", "recall", "examples", "ordered", "auc")
    }
    precise = [row["precision"] for row in rows if row["precision"] is not None]
    return {**numbers, "precision": fmean(precise) if precise else None, "batches": len(rows)}


def tables(figures: Figures) -> list[Table]:
    """One grid for each start, and the cases."""
    titles = {
        "begun": "One step of SGD once B is not zero",
        "fresh": "One step of SGD in round 0, where B is zero",
    }
    note = "in %: the batch's different tokens that are named / named tokens that are right / whole examples"
    grids = [Table(title, *_grid(figures[name]), notes=(note,)) for name, title in titles.items()]
    columns = ("what was done", "batch", "rank", "tokens", "span", "recall", "precision", "whole", "AUC")
    return [*grids, Table("What changes it", columns, [_row(row) for row in figures["cases"]])]


def _grid(rows: Sequence[Figures]) -> tuple[list[str], list[list[str]]]:
    ranks = list(dict.fromkeys(row["rank"] for row in rows))
    batches = list(dict.fromkeys(row["batch"] for row in rows))
    cells = {(row["batch"], row["rank"]): row for row in rows}
    table = []
    for batch in batches:
        tokens = common.count(cells[batch, ranks[0]]["batch_tokens"])
        table.append([str(batch), tokens, *(_cell(cells[batch, rank]) for rank in ranks)])
    return ["batch", "tokens", *(f"rank {rank}" for rank in ranks)], table


def _cell(row: Figures) -> str:
    if row["precision"] is None:
        return "0"
    return " / ".join(f"{100 * row[name]:.0f}" for name in ("recall", "precision", "examples"))


def _row(row: Figures) -> list[str]:
    counts = [common.count(row[name]) for name in ("batch", "rank", "batch_tokens", "dimensions")]
    shares = [common.share(row[name]) for name in ("recall", "precision", "examples")]
    return [row["case"], *counts, *shares, f"{row['auc']:.2f}"]


if __name__ == "__main__":
    sys.exit(main())
