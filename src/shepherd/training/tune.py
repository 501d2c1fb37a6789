"""Local tuning: K clients, each on its own data, in shared forward passes over one frozen base.

Packing changes only how the work is laid out, never which examples make an optimiser step or how their
loss is weighted (the mean over the step's trained tokens).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from time import monotonic
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from shepherd.core import (
    Adapter,
    Algorithm,
    Broadcast,
    LocalReport,
    LocalResult,
    Payload,
    Step,
    corner,
    seed_for,
)
from shepherd.core.cores import Bases, bases_of, shrunk
from shepherd.data.pack import batches, pack
from shepherd.data.tokens import Tokens
from shepherd.errors import AdapterError, DataError
from shepherd.model import lora, pass_plan
from shepherd.model.base import Base, hidden_states, tuning_attention
from shepherd.model.transfer import to_device
from shepherd.settings import TuningTable
from shepherd.training import cores, example_privacy, score, stack
from shepherd.training.ahead import ahead
from shepherd.training.example_privacy import ExamplePrivacy, fewest_tokens
from shepherd.training.local import DEFAULT_TRAINING, LocalTraining
from shepherd.training.loss import capped, token_losses, weighted_loss
from shepherd.training.objective import Objective, Scored
from shepherd.training.packed_batch import PackedBatch, Row, pack_batch, pad_batch, prediction_states

REPORT_INTERVAL_S = 1.0  # reading the loss waits for a GPU, so it is not done at every pass
NO_SCORES = np.zeros(0)
UNCOUNTED = np.zeros(0, np.int64)


@dataclass(frozen=True, slots=True, kw_only=True)
class Visit:
    """One client's work in one round: `batches` holds, for each optimiser step, indices into `data`."""

    client: str
    data: Tokens
    batches: Sequence[NDArray[np.int64]]
    seed: int = 0
    memory: Payload = field(default_factory=Payload)
    start: Adapter | None = None
    """Adapter that the visit starts from; None for the broadcast's."""
    rank: int | None = None
    """How many ranks of this adapter are trained, the first ones; None for all."""
    expected_batch: float = 1.0
    """Expected number of examples of a batch, which a step under `Job.privacy` divides by."""
    trained_tokens: NDArray[np.int64] = field(default_factory=lambda: UNCOUNTED, repr=False)
    """Trained tokens of each example in `data`, (n,); counted if not given."""

    def __post_init__(self) -> None:
        if self.trained_tokens is UNCOUNTED:
            object.__setattr__(self, "trained_tokens", predictions(self.data))

    @property
    def tokens(self) -> int:
        """Tokens of the examples in all batches."""
        return sum(int(self.data.lengths[batch].sum()) for batch in self.batches)


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """Visits to tune together, in shared forward passes."""

    broadcast: Broadcast
    algorithm: Algorithm
    visits: Sequence[Visit]
    tuning: TuningTable
    learning_rate: float
    """Learning rate of the round, before the schedule within a visit is applied."""
    micro_batch_tokens: int
    """Tokens in one forward pass, over all the clients in it."""
    training: LocalTraining = DEFAULT_TRAINING
    cap_nats: float = math.inf
    """Largest loss of one token in the reported loss, in nats; the gradient is not affected."""
    privacy: ExamplePrivacy | None = None
    """How each example is protected. Gradients are then clipped by example and not by step, a batch may be
    empty, and no progress tells a loss."""
    reference: Adapter | None = None
    """The adapter that an objective compares the current one with; None is the base alone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TuningResult:
    """Result of one visit; `delta` is local - broadcast, for the tensors that are trained and shared."""

    client: str
    delta: Adapter
    extra: Payload
    memory: Payload
    report: LocalReport


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """Progress of a job: sums over its clients since it began, and the current optimiser step, from 1."""

    tokens: int
    loss: float
    """Mean loss so far; 0 if it may not be reported."""
    step: int
    steps: int


def tune(
    base: Base, job: Job, watch: Callable[[Progress], None] = lambda progress: None
) -> list[TuningResult]:
    """Tune the broadcast adapter on each visit's data; results are in the order of the visits.

    The stack is ordered by client name, so the order of the visits changes no bit.

    Args:
        watch: called with the progress after each optimiser step, and about once a second within one.

    Raises:
        SettingsError: single examples are to be protected, and their gradients are not known.
        AdapterError: the broadcast or what a visit starts from does not fit the base, or nothing is trained.
        DataError: a batch holds no trained token, or an example has more tokens than the base reads.
    """
    broadcast, algorithm = job.broadcast, job.algorithm
    require_possible(base, job)
    if not job.visits:
        return []
    ordered = sorted(job.visits, key=lambda visit: visit.client)
    starts = [visit.start or broadcast.adapter for visit in ordered]
    trainable = _trainable(job)
    ranks = [visit.rank for visit in ordered]
    adapters = stack.build(starts, set(trainable).__contains__, base.device, ranks)
    ordered_job = replace(job, visits=ordered)
    references = _references(base, ordered_job)
    bases = bases_of(algorithm, broadcast.adapter, broadcast.round)
    lora.bind_adapters(base.model, base.targets, adapters.all)
    with tuning_attention(base):
        losses = _run(base, adapters, ordered_job, bases, references, watch).cpu().numpy()
    results = zip(ordered, starts, stack.trained_adapters(adapters, starts, ranks), losses, strict=True)
    tuned = {
        visit.client: _result(job, visit, start, local, loss, bases) for visit, start, local, loss in results
    }
    return [tuned[visit.client] for visit in job.visits]


def require_possible(base: Base, job: Job) -> None:
    """Raise the errors of `tune`: asked by themselves before a visit costs anything, such as privacy."""
    if job.privacy is not None:
        example_privacy.require_possible(base, job.training.objective)
    for visit in job.visits:
        if job.privacy is None:  # else a batch may be empty
            require_trained(visit)
        base.require_reads(int(visit.data.lengths.max(initial=0)), f"client {visit.client}")
    whole = job.broadcast.adapter
    lora.require_fits(base.targets, whole, f"the broadcast for base {base.name}")
    for visit in job.visits:
        if visit.start is not None:
            whose = f"the adapter that client {visit.client} starts from"
            lora.require_fits(base.targets, visit.start, whose)
    if job.visits and not _trainable(job):
        raise AdapterError(
            f"the algorithm trains no tensor in round {job.broadcast.round}; choose another algorithm"
        )


def _trainable(job: Job) -> list[str]:
    """Names of the tensors of the adapter that are trained in this round."""
    sent = job.broadcast
    return [name for name in sent.adapter if job.algorithm.trainable(name, sent.round)]


def _run(
    base: Base,
    adapters: stack.Stack,
    job: Job,
    bases: Bases,
    references: Sequence[NDArray[np.float64]],
    watch: Callable[[Progress], None],
) -> Tensor:
    """Run all optimiser steps; returns the sum of each visit's reported losses, (K,).

    On a GPU, nothing in a step waits for it, unless the objective needs scores: what the host reads, it reads
    after the last step, or about once a second.
    """
    visits, tuning = job.visits, job.tuning
    core = cores.build(adapters, bases) if bases else None
    stepped = adapters if core is None else core.stack
    state = job.training.optimiser.init(stepped)
    correct = _gradient_correction(adapters, job)
    clipped = None if job.privacy is None else example_privacy.begin(job.privacy, adapters)
    least = 0 if clipped is None else fewest_tokens(clipped.sums.shape[1], job.micro_batch_tokens)
    sums = torch.zeros(len(visits), dtype=torch.float64, device=base.device)
    tokens = counted = 0
    objective = job.training.objective
    steps, reported_at, loss = max((len(visit.batches) for visit in visits), default=0), monotonic(), 0.0
    every = [
        [job.learning_rate * stack.rate(tuning, step, len(v.batches)) for v in visits]
        for step in range(steps)
    ]
    every_rate = to_device(torch.tensor(every), base.device)  # (steps, K)
    laid_out = ahead(partial(_passes, base, job, least=least), range(steps), base.device)
    for step, waiting in enumerate(laid_out):
        adapters.grads.zero_()
        weights, by_group = _weights(base, job, step, waiting, references)
        if by_group is not None:
            sums += to_device(torch.from_numpy(by_group), base.device)
        for rows, batch in waiting:
            with nullcontext() if clipped is None else clipped.collecting(base, rows):
                own = _accumulate(base, job, rows, batch, weights)
            if by_group is None:
                for row, lost in zip(rows, own, strict=True):
                    sums[row.client] += lost.sum()  # not `index_add_`, whose order CUDA leaves open
            tokens += sum(row.tokens for row in rows)
            counted += sum(_count(visits[row.client], row.examples, objective) for row in rows)
            if monotonic() - reported_at > REPORT_INTERVAL_S:  # a step of a large base may take minutes
                loss, reported_at = _mean(sums, counted), monotonic()
                watch(_progress(job, tokens, loss, step, steps))
        if clipped is not None:
            making = {k: (v.client, v.expected_batch) for k, v in enumerate(visits) if step < len(v.batches)}
            clipped.release(making, step)
        rates = every_rate[step]
        correct(Step(index=step, rates=rates.view(-1, 1, 1)))
        for name, mask in adapters.masks.items():
            adapters.grad(name).mul_(mask)
        if core is not None:
            cores.pull(core, adapters)
        if clipped is None:
            stack.clip(stepped, tuning.clip_norm)
        state = job.training.optimiser.step(stepped, state, step + 1, rates)
        if core is not None:
            cores.push(core, adapters)
        stack.keep_fixed(adapters)
        # a GPU is not made to wait for the number at each step, but once it ends
        if base.device.type == "cpu" or step + 1 == steps:
            loss = _mean(sums, counted)
        watch(_progress(job, tokens, loss, step, steps))
    return sums


def _progress(job: Job, tokens: int, loss: float, step: int, steps: int) -> Progress:
    return Progress(tokens=tokens, loss=loss if job.privacy is None else 0.0, step=step + 1, steps=steps)


def _mean(sums: Tensor, counted: int) -> float:
    return float(sums.sum()) / max(1, counted)


def _count(visit: Visit, examples: NDArray[np.int64], objective: Objective) -> int:
    """What the reported loss is a mean over: the groups of these examples, or their trained tokens."""
    if objective.losses is not None:
        return len(examples) // objective.group_size
    return int(visit.trained_tokens[examples].sum())


def predictions(data: Tokens) -> NDArray[np.int64]:
    """Number of trained tokens of each example, (n,); the first token is never predicted."""
    running = np.concatenate([[0], np.cumsum(data.loss_mask, dtype=np.int64)])
    whole = running[data.offsets[1:]] - running[data.offsets[:-1]]
    return whole - data.loss_mask[data.offsets[:-1]]  # type: ignore[no-any-return]


def require_trained(visit: Visit) -> None:
    """Raise DataError, naming the client, if a batch holds no trained token."""
    for batch in visit.batches:
        if not visit.trained_tokens[batch].any():
            raise DataError(
                f"client {visit.client} has a step without a trained token; remove those examples"
            )


def _references(base: Base, job: Job) -> list[NDArray[np.float64]]:
    """Summed log-probability of each visit's examples under the reference, (n,) each; [] if not needed.

    Only that of the examples in its batches is known; the others' is 0.
    """
    if not job.training.objective.needs_scores:
        return []
    reference = base.zero if job.reference is None else job.reference
    found = []
    for visit in job.visits:
        sums = np.zeros(len(visit.data))
        taken = np.unique(np.concatenate([np.zeros(0, np.int64), *visit.batches]))
        if len(taken):
            sums[taken] = -score.losses(
                base,
                [reference],
                visit.data.take(taken),
                micro_batch=job.micro_batch_tokens,
                what="examples by the reference",
            )[0]
        found.append(sums)
    return found


def _weights(
    base: Base,
    job: Job,
    step: int,
    waiting: Sequence[tuple[list[Row], PackedBatch]],
    references: Sequence[NDArray[np.float64]],
) -> tuple[list[NDArray[np.float32]], NDArray[np.float64] | None]:
    """Weight of each example's tokens for each client, (n,) each; 0 for examples that are not in the step.

    Also the sum of each client's losses by group, (K,), capped as the losses of tokens are; None if the
    objective reports none.
    """
    objective, losses = job.training.objective, np.zeros(len(job.visits))
    weights = [np.zeros(len(visit.data), np.float32) for visit in job.visits]
    sums = _policy(base, job, waiting) if objective.needs_scores else []
    for k, visit in enumerate(job.visits):
        if step < len(visit.batches):
            taken = visit.batches[step]
            # a protected example must not have a weight that depends on others of its step
            for of in [taken] if job.privacy is None else taken.reshape(-1, 1):
                scored = Scored(
                    targets=visit.trained_tokens[of],
                    policy=sums[k][of] if sums else NO_SCORES,
                    reference=references[k][of] if references else NO_SCORES,
                )
                weights[k][of] = objective.weights(scored)
                if objective.losses is not None:
                    own = np.nan_to_num(objective.losses(scored), nan=job.cap_nats, posinf=job.cap_nats)
                    losses[k] += np.minimum(own, job.cap_nats).sum()
    return weights, None if objective.losses is None else losses


def _policy(
    base: Base, job: Job, waiting: Sequence[tuple[list[Row], PackedBatch]]
) -> list[NDArray[np.float64]]:
    """Summed log-probability of a step's examples under each client's current adapter, (n,) each."""
    sums = [np.zeros(len(visit.data)) for visit in job.visits]
    for rows, laid_out in waiting:
        batch = to_device(laid_out, base.device)
        with torch.no_grad(), pass_plan.use_plan(batch.plan):
            states = hidden_states(base, batch.ids, batch.positions).index_select(0, batch.output_positions)
            every = token_losses(base, prediction_states(states, batch), batch.targets).double().cpu().numpy()
        examples = np.concatenate([row.examples for row in rows])
        clients = np.repeat([row.client for row in rows], [len(row.examples) for row in rows])
        found = np.bincount(batch.examples, weights=every, minlength=len(examples))
        for client, example, loss in zip(clients, examples, found, strict=True):
            sums[client][example] = -loss
    return sums


def passes(
    visits: Sequence[Visit],
    step: int,
    micro_batch: int,
    *,
    packed: bool = True,
    least: int = 0,
    group: int = 1,
) -> list[list[Row]]:
    """The rows of one optimiser step, in forward passes of at most `micro_batch` tokens where they fit.

    A client's rows depend on its own data alone; only which rows share a pass depends on the stack. Without
    packing, each row is a pass of its own.

    Args:
        least: how many tokens a shorter example counts as, where examples are clipped one by one: it bounds
            the examples of a pass. 0 if they are not.
        group: how many consecutive examples are packed into one row, since they begin with the same tokens.
    """
    cut, group = (pack, group) if packed else (batches, 1)
    rows = [
        row for k, visit in enumerate(visits) for row in _rows(k, visit, step, micro_batch, cut, least, group)
    ]
    if not packed:
        return [[row] for row in rows]
    counted = [np.maximum(visits[row.client].data.lengths[row.examples], least) for row in rows]
    groups = pack([int(each.sum()) for each in counted], micro_batch)
    return [[rows[i] for i in group] for group in groups]


def _rows(
    k: int,
    visit: Visit,
    step: int,
    capacity: int,
    cut: Callable[[Sequence[int], int], list[list[int]]],
    least: int,
    group: int,
) -> Iterator[Row]:
    if step >= len(visit.batches):
        return
    batch = np.asarray(visit.batches[step])
    if least:  # the gradient of others is 0, and no failure may tell that nobody else was drawn
        batch = batch[visit.trained_tokens[batch] > 0]
    lengths = visit.data.lengths[batch]
    counted = np.maximum(lengths, least).reshape(-1, group).sum(axis=1)
    for index, groups in enumerate(cut(counted.tolist(), capacity)):
        members = (group * np.asarray(groups)[:, None] + np.arange(group)).ravel()
        # no draw of an example that is clipped by itself may depend on what else is in the step
        seed = seed_for(visit.seed, "dropout", step, *([] if least else [index]))
        yield Row(client=k, examples=batch[members], tokens=int(lengths[members].sum()), seed=seed)


def _accumulate(
    base: Base,
    job: Job,
    rows: Sequence[Row],
    laid_out: PackedBatch,
    weights: Sequence[NDArray[np.float32]],
) -> tuple[Tensor, ...]:
    """Run one forward and backward pass: add gradients to the stack; return each row's token losses."""
    each = np.concatenate([weights[row.client][row.examples] for row in rows])  # of each example
    batch, weight = to_device((laid_out, torch.from_numpy(each[laid_out.examples])), base.device)  # (M,)
    with pass_plan.use_plan(batch.plan):
        states = hidden_states(base, batch.ids, batch.positions).index_select(0, batch.output_positions)
        hidden = prediction_states(states, batch)  # (M, width), from (U, width)
        loss, every = weighted_loss(base, hidden, batch.targets, weight)
        loss.backward()
    return tuple(capped(every, job.cap_nats).double().split(batch.counts))


def _passes(base: Base, job: Job, step: int, *, least: int) -> list[tuple[list[Row], PackedBatch]]:
    """The passes of one optimiser step, each with its batch on the processor."""
    data, apart = [visit.data for visit in job.visits], job.privacy is not None
    group = job.training.objective.group_size
    cut = passes(job.visits, step, job.micro_batch_tokens, packed=base.packed, least=least, group=group)
    if not base.packed:
        return [([row], pad_batch(data[row.client], row, training=True, apart=apart)) for (row,) in cut]
    share = not base.adapter.dropout
    return [
        (rows, pack_batch(data, rows, base.device, training=True, share=share, apart=apart)) for rows in cut
    ]


def _gradient_correction(adapters: stack.Stack, job: Job) -> Callable[[Step], None]:
    """A function that corrects the gradients in place by the algorithm, on tensors with a client axis."""
    correction, broadcast = job.algorithm.correct, job.broadcast
    if correction is None:
        return lambda step: None
    device = adapters.values.device
    # all of a stack may be of smaller ranks than the broadcast
    shapes = {name: tuple(tensor.shape[1:]) for name, tensor in adapters.tensors.items()}
    sent: Any = replace(
        broadcast,
        adapter={name: _tensor(corner(broadcast.adapter[name], shapes[name]), device) for name in shapes},  # type: ignore[arg-type]
        extra={
            name: _tensor(corner(tensor, shapes.get(name, tensor.shape)), device)
            for name, tensor in broadcast.extra.items()
        },  # type: ignore[arg-type]
    )
    memory = _memories([visit.memory for visit in job.visits], device)

    def correct(step: Step) -> None:
        with torch.no_grad():
            for name, param in adapters.tensors.items():
                grad = adapters.grad(name)
                corrected = correction(name, grad, param, sent, memory, step)
                if corrected is not grad:
                    grad.copy_(corrected)

    return correct


def _tensor(array: NDArray[Any], device: torch.device) -> Tensor:
    writable: Tensor = torch.from_numpy(array.copy())  # torch warns about read-only arrays
    return writable.to(device)


def _memories(memories: Sequence[Payload], device: torch.device) -> dict[str, Tensor]:
    """The clients' memories, stacked: name -> (K, ...); zeros for a client's first visit.

    Raises:
        AdapterError: two clients' memories have different tensors.
    """
    known = next((memory for memory in memories if memory), None)
    if known is None:
        return {}
    blank = Payload({name: np.zeros_like(tensor) for name, tensor in known.items()})
    return lora.stacked([memory or blank for memory in memories], device)


def _result(
    job: Job, visit: Visit, start: Adapter, local: Adapter, loss_sum: float, bases: Bases
) -> TuningResult:
    broadcast, steps = job.broadcast, len(visit.batches)
    sent = {
        n: t for n, t in broadcast.adapter.items() if n in local and job.algorithm.shared(n, broadcast.round)
    }
    # a client may train fewer ranks than it was sent, and others of its own
    delta = Adapter({n: corner(local[n], t.shape) - corner(t, local[n].shape) for n, t in sent.items()})
    delta = shrunk(bases, delta) if bases else delta
    rates = (stack.rate(job.tuning, step, steps) for step in range(steps))
    result = LocalResult(
        start=start,
        local=local,
        steps=steps,
        rate_sum=job.learning_rate * math.fsum(rates),
        learning_rate=job.learning_rate,
    )
    memory, extra = job.algorithm.remember(visit.memory, broadcast, result)
    taken = np.concatenate(list(visit.batches)) if steps else np.zeros(0, np.int64)
    trained = int(visit.trained_tokens[taken].sum())
    report = LocalReport(
        loss=float(loss_sum) / max(1, _count(visit, taken, job.training.objective)),
        examples=len(taken) // job.training.objective.group_size,
        tokens=int(visit.data.lengths[taken].sum()),
        trained_tokens=trained,
        steps=steps,
    )
    return TuningResult(client=visit.client, delta=delta, extra=extra, memory=memory, report=report)
