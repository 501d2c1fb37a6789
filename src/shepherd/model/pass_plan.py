"""The plan of one forward pass: rows of several clients end to end, with whole examples inside each row.

A packed batch is a sequence of N tokens without padding. A segment is a part of it that belongs to one
adapter. Inside a segment are spans: an example is one span, or several examples share a prefix, which is a
span of its own and the parent of the spans that continue it. No token sees another example.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

MAX_PADDING_RATIO = 1.15  # padded to real tokens of a bucket; attention runs on spans of similar length
MAX_EXAMPLE_PADDING_RATIO = 1.5  # of a bucket of examples, whose products are narrow and cheap


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """Positions [start, stop) belong to adapter `adapter`; `dropout_seed` seeds this row's LoRA dropout."""

    adapter: int
    start: int
    stop: int
    dropout_seed: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Buckets:
    """Padded buckets of spans of similar length, one span a row, flattened and end to end; and the way back.

    `shapes`: (count, width) of each bucket. `gather` (P,): the batch's token at each bucket position; padding
    repeats a span's last token. `inverse` (N,): the bucket position of each token of the batch. `copies`: for
    each shared prefix, its first token in the batch, and the bucket positions of its copies in front of the
    spans that continue it, (spans, tokens).
    """

    shapes: tuple[tuple[int, int], ...]
    gather: Tensor
    inverse: Tensor
    copies: tuple[tuple[int, Tensor], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Padding:
    """The spans of a packed batch as queries; and as keys, with its prefix in front of each span."""

    queries: Buckets
    keys: Buckets


@dataclass(frozen=True, slots=True, kw_only=True)
class ExampleBucket:
    """Examples of one segment and of similar length, n of them, padded to a common width.

    `segment`: index in the plan's segments. `rows` (n,): which row of gradients belongs to each. `tokens`
    (n * width,): each one's tokens in the batch, the last one repeated; `within`: the same, counted from the
    start of the segment. `real` (n, 1, width): 1 for a token, 0 for a repetition.
    """

    segment: int
    rows: Tensor
    tokens: Tensor
    within: Tensor
    real: Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Examples:
    """The examples of a pass whose gradients are kept apart, in the order of the batch."""

    segments: tuple[Segment, ...]
    """One for each example; its `adapter` is the example's row of gradients."""
    buckets: tuple[ExampleBucket, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class PassPlan:
    """What the adapted layers and packed attention need to know of the current forward pass.

    `size` is the number of positions that the segments divide: tokens (packed), or sequences of a batch
    (generation) that all have the same number of tokens.
    """

    segments: tuple[Segment, ...]
    size: int
    training: bool = False
    padding: Padding | None = None
    """Buckets for packed attention; None if the model's own attention runs."""
    output_positions: Tensor | None = None
    """Positions whose final states are read, ascending; None for all."""
    examples: Examples | None = None
    """The examples, if the gradients of each are kept apart; None if they are summed."""
    answering: bool = False
    """Whether nothing needs a gradient and the stack is one for answers; see `lora.for_answers`."""


CPU = torch.device("cpu")
_active_plan: ContextVar[PassPlan | None] = ContextVar("active_plan", default=None)


@contextmanager
def use_plan(plan: PassPlan) -> Iterator[None]:
    """Make `plan` the plan that adapted layers and packed attention read."""
    token = _active_plan.set(plan)
    try:
        yield
    finally:
        _active_plan.reset(token)


def active_plan() -> PassPlan | None:
    """The plan of the current forward pass; None outside one."""
    return _active_plan.get()


def sequences(counts: Sequence[int]) -> PassPlan:
    """The plan of an ordinary batch in which `counts[k]` consecutive sequences belong to adapter k."""
    ends = np.cumsum([0, *counts]).tolist()
    segments = tuple(
        Segment(adapter=k, start=start, stop=stop) for k, (start, stop) in enumerate(pairwise(ends))
    )
    return PassPlan(segments=segments, size=ends[-1])


def packed(
    lengths: Sequence[int],
    segments: Sequence[Segment],
    device: torch.device,
    *,
    parents: Sequence[int] | None = None,
    output_positions: Tensor | None = None,
    training: bool = False,
    examples: Sequence[Segment] = (),
) -> PassPlan:
    """The plan of a packed batch whose spans have these lengths, in order.

    `parents[j]` is the span that span j continues, -1 for none; that one continues none.
    """
    sizes = np.asarray(lengths, dtype=np.int64)
    return PassPlan(
        segments=tuple(segments),
        size=int(sizes.sum()),
        training=training,
        padding=_padding(sizes, _parents(parents, len(sizes)), device),
        output_positions=output_positions,
        examples=apart(segments, examples, device) if examples else None,
    )


def padded(
    count: int,
    width: int,
    adapter: int,
    *,
    dropout_seed: int = 0,
    training: bool = False,
    examples: Sequence[Segment] = (),
    device: torch.device = CPU,
) -> PassPlan:
    """The plan of a batch (count, width) of one client's examples, padded on the right."""
    size = count * width
    segment = Segment(adapter=adapter, start=0, stop=size, dropout_seed=dropout_seed)
    own = apart((segment,), examples, device) if examples else None
    return PassPlan(segments=(segment,), size=size, training=training, examples=own)


def apart(segments: Sequence[Segment], examples: Sequence[Segment], device: torch.device) -> Examples:
    """The examples of these segments, each inside one of them, in buckets of similar length."""
    buckets = []
    for index, segment in enumerate(segments):
        inside = [e for e in examples if segment.start <= e.start < e.stop <= segment.stop]
        lengths = np.array([e.stop - e.start for e in inside], np.int64)
        for group in _groups(lengths, MAX_EXAMPLE_PADDING_RATIO) if inside else ():
            steps = np.arange(lengths[group].max())
            starts = np.array([inside[i].start for i in group])
            tokens = starts[:, None] + np.minimum(steps, lengths[group][:, None] - 1)
            bucket = ExampleBucket(
                segment=index,
                rows=_on(device, np.array([inside[i].adapter for i in group])),
                tokens=_on(device, tokens.reshape(-1)),
                within=_on(device, tokens.reshape(-1) - segment.start),
                real=_on(device, (steps < lengths[group][:, None]).astype(np.int64)).unsqueeze(1),
            )
            buckets.append(bucket)
    return Examples(segments=tuple(examples), buckets=tuple(buckets))


def narrowed(plan: PassPlan) -> PassPlan:
    """The plan of only the positions that are read, for a module that treats each token by itself."""
    assert plan.output_positions is not None
    return replace(
        plan,
        segments=(segments := _narrowed(plan.segments, plan.output_positions)),
        size=len(plan.output_positions),
        padding=None,
        output_positions=None,
        examples=None
        if plan.examples is None
        else apart(
            segments, _narrowed(plan.examples.segments, plan.output_positions), plan.output_positions.device
        ),
    )


def _narrowed(segments: Sequence[Segment], read: Tensor) -> tuple[Segment, ...]:
    borders = torch.tensor([[s.start, s.stop] for s in segments], device=read.device)
    found = torch.searchsorted(read, borders).tolist()
    return tuple(
        replace(segment, start=start, stop=stop)
        for segment, (start, stop) in zip(segments, found, strict=True)
    )


def positions(lengths: Sequence[int], parents: Sequence[int] | None = None) -> NDArray[np.int64]:
    """Each token's position in its own example; `parents` as in `packed`.

    >>> positions([3, 2, 1], [-1, -1, 0]).tolist()
    [0, 1, 2, 0, 1, 3]
    """
    sizes = np.asarray(lengths, dtype=np.int64)
    pasts = _pasts(sizes, _parents(parents, len(sizes)))
    return np.concatenate([past + np.arange(size) for past, size in zip(pasts, sizes, strict=True)])


def _parents(parents: Sequence[int] | None, count: int) -> NDArray[np.int64]:
    return np.full(count, -1) if parents is None else np.asarray(parents, dtype=np.int64)


def _pasts(lengths: NDArray[np.int64], parents: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.where(parents >= 0, lengths[parents], 0)


def _groups(lengths: NDArray[np.int64], most_padding: float = MAX_PADDING_RATIO) -> list[NDArray[np.int64]]:
    """Groups of spans by decreasing length, divided where padding to the longest would waste too much."""
    order = np.argsort(-lengths, kind="stable")
    groups: list[NDArray[np.int64]] = []
    first, real = 0, 0
    for index, span in enumerate(order):
        padded = lengths[order[first]] * (index - first + 1)
        if padded > most_padding * (real + lengths[span]) and index > first:
            groups.append(order[first:index])
            first, real = index, 0
        real += int(lengths[span])
    return [*groups, order[first:]]


def _padding(lengths: NDArray[np.int64], parents: NDArray[np.int64], device: torch.device) -> Padding:
    starts, pasts = np.cumsum([0, *lengths]), _pasts(lengths, parents)
    own, prefixes = [], []  # tokens of the batch, (count, width) and (count, past) per bucket
    for past in np.unique(pasts).tolist():  # one prefix length per bucket, so one mask per bucket
        members = np.flatnonzero(pasts == past)
        for group in _groups(lengths[members]):
            chosen = members[group]
            steps = np.arange(lengths[chosen].max())
            # padding comes after every real query of its span, so causality hides it
            own.append(starts[chosen][:, None] + np.minimum(steps, lengths[chosen][:, None] - 1))
            prefixes.append(starts[parents[chosen]][:, None] + np.arange(past))
    queries = _buckets([part[:, :0] for part in own], own, device)
    return Padding(queries=queries, keys=_buckets(prefixes, own, device) if pasts.any() else queries)


def _buckets(
    prefixes: Sequence[NDArray[np.int64]], own: Sequence[NDArray[np.int64]], device: torch.device
) -> Buckets:
    rows = [np.concatenate(pair, axis=1) for pair in zip(prefixes, own, strict=True)]
    ends = np.cumsum([0, *(part.size for part in rows)])
    spots = [
        start + np.arange(part.size).reshape(part.shape) for start, part in zip(ends, rows, strict=False)
    ]
    inverse = np.empty(max(part.max() for part in own) + 1, np.int64)
    copies: dict[int, list[NDArray[np.int64]]] = {}
    for prefix, part, spot in zip(prefixes, own, spots, strict=True):
        past = prefix.shape[1]
        # backwards, so that the first of repeated tokens is kept
        inverse[part.reshape(-1)[::-1]] = spot[:, past:].reshape(-1)[::-1]
        for shared, copy in zip(prefix, spot[:, :past], strict=True):
            if past:
                copies.setdefault(int(shared[0]), []).append(copy)
    return Buckets(
        shapes=tuple((len(part), part.shape[1]) for part in rows),
        gather=_on(device, np.concatenate([part.reshape(-1) for part in rows])),
        inverse=_on(device, inverse),
        copies=tuple((first, _on(device, np.stack(found))) for first, found in copies.items()),
    )


def _on(device: torch.device, array: NDArray[np.int64]) -> Tensor:
    return torch.from_numpy(array).to(device)
