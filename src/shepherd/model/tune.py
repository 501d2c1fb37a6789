"""Local tuning: K clients, each on its own data, in shared forward passes over one frozen base.

A batch is still a batch: packing changes the layout of the work, never which examples make an
optimiser step or how their loss is weighted (the mean over the step's trained tokens).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from time import monotonic
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from shepherd.core import Adapter, Algorithm, Broadcast, LocalResult, Payload, Step, seed_for
from shepherd.data.pack import batches, pack
from shepherd.data.tokens import Tokens
from shepherd.errors import AdapterError, DataError
from shepherd.model import layout, lora, memory, stack
from shepherd.model.base import Base, hidden_states, tuning_attention
from shepherd.model.line import Row, at_places, batch_of, line_of
from shepherd.model.loss import capped, weighted_loss
from shepherd.settings import TuningTable

WATCH_S = 1.0  # seconds: a look at the loss waits for a GPU, so not at every pass


@dataclass(frozen=True, slots=True, kw_only=True)
class Visit:
    """One client's work in one round: `steps` holds, for each optimiser step, indices into `data`."""

    client: str
    data: Tokens
    steps: Sequence[NDArray[np.int64]]
    seed: int = 0
    memory: Payload = field(default_factory=Payload)
    start: Adapter | None = None
    """The adapter that the visit starts from; None is the broadcast's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tuned:
    """What one visit made. `delta` = local - broadcast, of the tensors that are trained and shared."""

    client: str
    delta: Adapter
    extra: Payload
    memory: Payload
    steps: int
    examples: int
    tokens: int
    trained_tokens: int
    loss: float
    """Mean over the visit's trained tokens, in nats, each scored before the step it was part of."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How far a tuning is: sums over all clients since it began, and the optimiser step under way, from 1."""

    tokens: int
    loss: float
    step: int
    steps: int


def tune(
    base: Base,
    broadcast: Broadcast,
    algorithm: Algorithm,
    visits: Sequence[Visit],
    tuning: TuningTable,
    *,
    learning_rate: float,
    cap_nats: float = math.inf,
    watch: Callable[[Progress], None] = lambda progress: None,
) -> list[Tuned]:
    """Tune the broadcast adapter on each visit's data; the results stand in the visits' order.

    The cohort is laid out by client name whatever order it comes in, so the order changes no bit.

    Args:
        cap_nats: most that one token counts in the loss that is reported; the gradient is never capped.
        watch: hears how far it is after each optimiser step, and about once a second within one.

    Raises:
        AdapterError: the broadcast does not fit the base.
        DataError: a step of a visit holds no trained token, or an example more than the base reads.
    """
    for visit in visits:
        require_trained(visit)
        base.require_reads(int(visit.data.lengths.max(initial=0)), f"client {visit.client}")
    lora.require_fits(base.sites, broadcast.adapter, f"the broadcast for base {base.name}")
    if not visits:
        return []
    ordered = sorted(visits, key=lambda visit: visit.client)
    starts = [visit.start or broadcast.adapter for visit in ordered]
    for visit in ordered:
        if visit.start is not None:
            lora.require_fits(base.sites, visit.start, f"what client {visit.client} starts from")
    trainable = [name for name in broadcast.adapter if algorithm.trainable(name, broadcast.round)]
    if not trainable:
        raise AdapterError(f"the algorithm trains no tensor in round {broadcast.round}; choose another")
    cohort = stack.build(starts, set(trainable).__contains__, base.device)
    lora.hang(base.model, base.sites, cohort.all)
    with tuning_attention(base):
        losses = _run(base, cohort, broadcast, algorithm, ordered, tuning, learning_rate, cap_nats, watch)
    locals_ = stack.rows(cohort, starts)
    rate_sums = [
        learning_rate
        * math.fsum(stack.rate(tuning, step, len(visit.steps)) for step in range(len(visit.steps)))
        for visit in ordered
    ]
    tuned = {
        visit.client: _result(
            visit,
            broadcast,
            algorithm,
            LocalResult(start=start, local=local, steps=len(visit.steps), rate_sum=rate_sum),
            loss,
        )
        for visit, start, local, rate_sum, loss in zip(
            ordered, starts, locals_, rate_sums, losses, strict=True
        )
    }
    return [tuned[visit.client] for visit in visits]


def _run(
    base: Base,
    cohort: stack.Stack,
    broadcast: Broadcast,
    algorithm: Algorithm,
    visits: Sequence[Visit],
    tuning: TuningTable,
    learning_rate: float,
    cap_nats: float,
    watch: Callable[[Progress], None],
) -> NDArray[np.float64]:
    """All optimiser steps; the sum of losses over each visit's trained tokens, (K,)."""
    optimiser = stack.AdamW.fresh(cohort, tuning)
    predicted = [predictions(visit.data) for visit in visits]
    micro_batch = micro_batch_tokens(tuning, base)
    correct = _correction(cohort, broadcast, algorithm, visits)
    sums = torch.zeros(len(visits), dtype=torch.float64, device=base.device)
    tokens = trained = 0
    steps, told = max((len(visit.steps) for visit in visits), default=0), monotonic()
    for step in range(steps):
        cohort.grads.zero_()
        counts = _step_counts(visits, predicted, step)
        for rows in passes(visits, step, micro_batch, packed=base.packed):
            tokens += _accumulate(base, visits, rows, counts, sums, cap_nats)
            trained += sum(int(predicted[row.client][row.examples].sum()) for row in rows)
            if monotonic() - told > WATCH_S:  # a step of a large base may take minutes
                watch(Progress(tokens=tokens, loss=_mean(sums, trained), step=step + 1, steps=steps))
                told = monotonic()
        shape = [learning_rate * stack.rate(tuning, step, len(visit.steps)) for visit in visits]
        rates = torch.tensor(shape, device=base.device)  # (K,)
        correct(Step(index=step, rates=rates.view(-1, 1, 1)))
        for name, mask in cohort.masks.items():
            cohort.grad(name).mul_(mask)
        stack.clip(cohort, tuning.clip_norm)
        optimiser.step(cohort, step + 1, rates)
        watch(Progress(tokens=tokens, loss=_mean(sums, trained), step=step + 1, steps=steps))
    return sums.cpu().numpy()


def _mean(sums: Tensor, trained: int) -> float:
    return float(sums.sum()) / max(1, trained)


def predictions(data: Tokens) -> NDArray[np.int64]:
    """For each example, how many of its tokens are trained (n,); the first token is never predicted."""
    running = np.concatenate([[0], np.cumsum(data.trained, dtype=np.int64)])
    whole = running[data.offsets[1:]] - running[data.offsets[:-1]]
    return whole - data.trained[data.offsets[:-1]]  # type: ignore[no-any-return]


def require_trained(visit: Visit) -> None:
    """Raise DataError, naming the client, where a step holds no trained token."""
    predicted = predictions(visit.data)
    for step in visit.steps:
        if not predicted[step].any():
            raise DataError(f"client {visit.client} has a step without a trained token; drop those examples")


def _step_counts(visits: Sequence[Visit], predicted: Sequence[NDArray[np.int64]], step: int) -> list[int]:
    """The trained tokens of each client's step, (K,); 0 for a client that is done."""
    return [
        int(each[visit.steps[step]].sum()) if step < len(visit.steps) else 0
        for visit, each in zip(visits, predicted, strict=True)
    ]


def micro_batch_tokens(tuning: TuningTable, base: Base) -> int:
    """Tokens in one forward pass; "auto" is what `memory.micro_batch` takes for this base and device."""
    chosen = tuning.micro_batch_tokens
    return chosen if isinstance(chosen, int) else memory.micro_batch(base)


def passes(visits: Sequence[Visit], step: int, micro_batch: int, *, packed: bool = True) -> list[list[Row]]:
    """The rows of one optimiser step, in forward passes of at most `micro_batch` tokens where they fit.

    A client's rows depend on its own data alone; only which rows share a pass depends on the cohort, and
    unpacked each is a pass of its own.
    """
    cut = pack if packed else batches
    rows = [row for k, visit in enumerate(visits) for row in _rows(k, visit, step, micro_batch, cut)]
    if not packed:
        return [[row] for row in rows]
    groups = pack([row.tokens for row in rows], micro_batch)
    return [[rows[i] for i in group] for group in groups]


def _rows(
    k: int,
    visit: Visit,
    step: int,
    capacity: int,
    cut: Callable[[Sequence[int], int], list[list[int]]],
) -> Iterator[Row]:
    if step >= len(visit.steps):
        return
    batch = np.asarray(visit.steps[step])
    lengths = visit.data.lengths[batch]
    for place, members in enumerate(cut(lengths.tolist(), capacity)):
        seed = seed_for(visit.seed, "dropout", step, place)
        yield Row(client=k, examples=batch[members], tokens=int(lengths[members].sum()), seed=seed)


def _accumulate(
    base: Base,
    visits: Sequence[Visit],
    rows: Sequence[Row],
    counts: Sequence[int],
    sums: Tensor,
    cap_nats: float,
) -> int:
    """One forward and backward pass: gradients into the stack, losses into `sums`; returns its tokens."""
    if base.packed:
        data = [visit.data for visit in visits]
        line = line_of(data, rows, base.device, training=True, share=not base.adapter.dropout)
    else:
        (row,) = rows
        line = batch_of(visits[row.client].data, row, base.device, training=True)
    weight = torch.tensor([1 / max(1, count) for count in counts], device=base.device)  # (K,)
    with layout.running(line.layout):
        states = hidden_states(base, line.ids, line.positions).index_select(0, line.read)  # (U, width)
        hidden = at_places(states, line)  # (M, width)
        loss, every = weighted_loss(base, hidden, line.targets, weight[line.owners])
        loss.backward()
    for row, own in zip(rows, capped(every, cap_nats).double().split(line.counts), strict=True):
        sums[row.client] += own.sum()  # not `index_add_`, whose order CUDA leaves open
    return sum(row.tokens for row in rows)


def _correction(
    cohort: stack.Stack, broadcast: Broadcast, algorithm: Algorithm, visits: Sequence[Visit]
) -> Callable[[Step], None]:
    """The algorithm's correction of the gradients, in place; it sees tensors with a client axis."""
    correction = algorithm.correct
    if correction is None:
        return lambda step: None
    device = cohort.values.device
    sent: Any = replace(
        broadcast,
        adapter={name: _tensor(broadcast.adapter[name], device) for name in cohort.tensors},  # type: ignore[arg-type]
        extra={name: _tensor(tensor, device) for name, tensor in broadcast.extra.items()},  # type: ignore[arg-type]
    )
    memory = _memories([visit.memory for visit in visits], device)

    def correct(step: Step) -> None:
        with torch.no_grad():
            for name, param in cohort.tensors.items():
                grad = cohort.grad(name)
                corrected = correction(name, grad, param, sent, memory, step)
                if corrected is not grad:
                    grad.copy_(corrected)

    return correct


def _tensor(array: NDArray[Any], device: torch.device) -> Tensor:
    writable: Tensor = torch.from_numpy(array.copy())  # torch warns of read-only arrays
    return writable.to(device)


def _memories(memories: Sequence[Payload], device: torch.device) -> dict[str, Tensor]:
    """What the clients remember, stacked: name -> (K, ...); zeros for a client's first visit.

    Raises:
        AdapterError: two clients remember tensors of other names.
    """
    known = next((memory for memory in memories if memory), None)
    if known is None:
        return {}
    blank = Payload({name: np.zeros_like(tensor) for name, tensor in known.items()})
    return lora.stacked([memory or blank for memory in memories], device)


def _result(
    visit: Visit, broadcast: Broadcast, algorithm: Algorithm, result: LocalResult, loss_sum: float
) -> Tuned:
    shared = {n: t for n, t in result.local.items() if algorithm.shared(n, broadcast.round)}
    delta = Adapter({n: t - stack.corner(broadcast.adapter[n], t.shape) for n, t in shared.items()})
    memory, extra = algorithm.remember(visit.memory, broadcast, result)
    taken = [int(i) for step in visit.steps for i in step]
    trained = int(predictions(visit.data)[taken].sum())
    return Tuned(
        client=visit.client,
        delta=delta,
        extra=extra,
        memory=memory,
        steps=len(visit.steps),
        examples=len(taken),
        tokens=int(visit.data.lengths[taken].sum()),
        trained_tokens=trained,
        loss=float(loss_sum) / max(1, trained),
    )
