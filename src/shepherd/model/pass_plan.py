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
from functools import partial  # noqa: F401
from itertools import groupby, pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from shepherd.model.transfer import to_device

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
class Varlen:
    """The spans of a packed batch for a kernel that takes spans of any lengths end to end, without padding.

    `query_ends` and `key_ends` (spans + 1,), int32: where each span's queries and keys end, from 0 on; a
    span's keys are those of its prefix and then its own, so its queries are the last of them. `keys`: where
    each key is in the batch, and where each token is among the keys; None if no span continues another.
    """

    query_ends: Tensor
    key_ends: Tensor
    most_queries: int
    most_keys: int
    keys: Buckets | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Groups:
    """The tokens of each adapter, one group each, for one product over all of them.

    `adapters` (G,): which adapter each group belongs to, ascending in `ends` (G,), int32, where it ends.
    """

    adapters: Tensor
    ends: Tensor


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
    varlen: Varlen | None = None
    """The same spans without padding, for CUDA; None elsewhere."""
    groups: Groups | None = None
    """The adapters' tokens for grouped products on CUDA, which know one gradient an adapter; None elsewhere,
    if an adapter has two groups, or if the gradients of examples are kept apart."""
    output_positions: Tensor | None = None
    """Positions whose final states are read, ascending; None for all."""
    read: PassPlan | None = None
    """The plan of those positions alone, for a module that treats each token by itself; None for all."""
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
    cuda: bool | None = None,
) -> PassPlan:
    """The plan of a packed batch whose spans have these lengths, in order.

    `parents[j]` is the span that span j continues, -1 for none; that one continues none.

    Args:
        output_positions: on the processor, ascending.
        cuda: whether it also holds what only CUDA's kernels take; by default, if the device is one.
    """
    sizes = np.asarray(lengths, dtype=np.int64)
    after = _parents(parents, len(sizes))
    kernels = device.type == "cuda" if cuda is None else cuda
    by_example = apart(segments, examples) if examples else None
    read = None
    if output_positions is not None:
        read = _read(segments, output_positions, training, by_example, kernels)
    plan = PassPlan(
        segments=tuple(segments),
        size=int(sizes.sum()),
        training=training,
        padding=_padding(sizes, after),
        varlen=_varlen(sizes, after) if kernels else None,
        groups=_grouped(segments) if kernels and by_example is None else None,
        output_positions=output_positions,
        read=read,
        examples=by_example,
    )
    return to_device(plan, device)


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
    own = apart((segment,), examples) if examples else None
    return to_device(PassPlan(segments=(segment,), size=size, training=training, examples=own), device)


def apart(segments: Sequence[Segment], examples: Sequence[Segment]) -> Examples:
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
                rows=torch.from_numpy(np.array([inside[i].adapter for i in group])),
                tokens=torch.from_numpy(tokens.reshape(-1)),
                within=torch.from_numpy(tokens.reshape(-1) - segment.start),
                real=torch.from_numpy((steps < lengths[group][:, None]).astype(np.int64)).unsqueeze(1),
            )
            buckets.append(bucket)
    return Examples(segments=tuple(examples), buckets=tuple(buckets))


def _read(
    segments: Sequence[Segment], read: Tensor, training: bool, examples: Examples | None, kernels: bool
) -> PassPlan:
    """The plan of the positions that are read only."""
    own = _narrowed(segments, read)
    return PassPlan(
        segments=own,
        size=len(read),
        training=training,
        groups=_grouped(own) if kernels and examples is None else None,
        examples=None if examples is None else apart(own, _narrowed(examples.segments, read)),
    )


def _narrowed(segments: Sequence[Segment], read: Tensor) -> tuple[Segment, ...]:
    borders = np.searchsorted(read.numpy(), [[s.start, s.stop] for s in segments]).tolist()
    return tuple(
        replace(segment, start=start, stop=stop)
        for segment, (start, stop) in zip(segments, borders, strict=True)
    )


def _grouped(segments: Sequence[Segment]) -> Groups | None:
    """The segments' tokens by adapter; None if there are none, with gaps, or an adapter's in two places.

    >>> one, other = Segment(adapter=2, start=0, stop=3), Segment(adapter=2, start=3, stop=5)
    >>> _grouped([one, other]).ends.tolist(), _grouped([one, replace(other, start=4)])
    ([5], None)
    """
    if any(before.stop != after.start for before, after in pairwise(segments)):
        return None
    runs = [list(run) for _, run in groupby(segments, key=lambda segment: segment.adapter)]
    adapters = [run[0].adapter for run in runs]
    empty = not segments or not segments[-1].stop
    if empty or segments[0].start or len(set(adapters)) < len(adapters):
        return None
    ends = torch.tensor([run[-1].stop for run in runs], dtype=torch.int32)
    return Groups(adapters=torch.tensor(adapters), ends=ends)


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


def _varlen(lengths: NDArray[np.int64], parents: NDArray[np.int64]) -> Varlen:
    starts, pasts = np.cumsum([0, *lengths]), _pasts(lengths, parents)
    prefixes = [starts[max(parent, 0)] + np.arange(past) for parent, past in zip(parents, pasts, strict=True)]
    own = [start + np.arange(size) for start, size in zip(starts[:-1], lengths, strict=True)]
    wide = [[part[None] for part in parts] for parts in (prefixes, own)]
    return Varlen(
        query_ends=torch.from_numpy(starts.astype(np.int32)),
        key_ends=torch.from_numpy(np.cumsum([0, *(lengths + pasts)]).astype(np.int32)),
        most_queries=int(lengths.max(initial=0)),
        most_keys=int((lengths + pasts).max(initial=0)),
        keys=_buckets(*wide) if pasts.any() else None,
    )


def _padding(lengths: NDArray[np.int64], parents: NDArray[np.int64]) -> Padding:
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
    queries = _buckets([part[:, :0] for part in own], own)
    return Padding(queries=queries, keys=_buckets(prefixes, own) if pasts.any() else queries)


def _buckets(prefixes: Sequence[NDArray[np.int64]], own: Sequence[NDArray[np.int64]]) -> Buckets:
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
        gather=torch.from_numpy(np.concatenate([part.reshape(-1) for part in rows])),
        inverse=torch.from_numpy(inverse),
        copies=tuple((first, torch.from_numpy(np.stack(found))) for first, found in copies.items()),
    )
