"""How one forward pass is laid out: rows of several clients end to end, whole examples inside each row.

A pass is one line of N tokens. Segment j is a stretch of it that belongs to one adapter; examples are
shorter stretches inside the segments, and no token sees another example. Nothing is padded.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

PADDING_ALLOWED = 1.15  # attention runs on buckets of examples of about the same length


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """Places [start, stop) belong to adapter `adapter`; `dropout_seed` seeds this row's LoRA dropout."""

    adapter: int
    start: int
    stop: int
    dropout_seed: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Bucket:
    """`count` examples attended to together, each padded to `width` tokens."""

    count: int
    width: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Padding:
    """The line with its examples sorted into buckets, and the way back.

    `gather` (P,): which token of the line stands at each place of the buckets, laid end to end; padding
    repeats an example's last token. `places` (N,): where each token of the line stands there.
    """

    buckets: tuple[Bucket, ...]
    gather: Tensor
    places: Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """What the adapted layers and the attention must know of the pass that is running.

    `places` is what the segments count: tokens of the line (packed), or sequences of a batch
    (generation), where every sequence has the same number of tokens.
    """

    segments: tuple[Segment, ...]
    places: int
    training: bool = False
    padding: Padding | None = None
    """For packed attention; None where the model's own attention runs."""


_current: ContextVar[Layout | None] = ContextVar("layout", default=None)


@contextmanager
def running(layout: Layout) -> Iterator[None]:
    """Make `layout` the one that adapted layers and packed attention read."""
    token = _current.set(layout)
    try:
        yield
    finally:
        _current.reset(token)


def current() -> Layout | None:
    """The layout of the pass that is running, if any."""
    return _current.get()


def sequences(counts: Sequence[int]) -> Layout:
    """An ordinary batch in which `counts[k]` consecutive sequences belong to adapter k."""
    ends = np.cumsum([0, *counts]).tolist()
    segments = tuple(
        Segment(adapter=k, start=start, stop=stop) for k, (start, stop) in enumerate(pairwise(ends))
    )
    return Layout(segments=segments, places=ends[-1])


def packed(
    lengths: Sequence[int], segments: Sequence[Segment], device: torch.device, *, training: bool = False
) -> Layout:
    """The layout of a line whose examples have these lengths, in order."""
    sizes = np.asarray(lengths, dtype=np.int64)
    return Layout(
        segments=tuple(segments),
        places=int(sizes.sum()),
        training=training,
        padding=_padding(sizes, device),
    )


def positions(lengths: Sequence[int]) -> NDArray[np.int64]:
    """Each token's place in its own example: 0, 1, 2, 0, 1, ...

    >>> positions([3, 2]).tolist()
    [0, 1, 2, 0, 1]
    """
    return np.concatenate([np.arange(length, dtype=np.int64) for length in lengths])


def _groups(lengths: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    """Examples by falling length, cut where padding to the longest would waste too much."""
    order = np.argsort(-lengths, kind="stable")
    groups: list[NDArray[np.int64]] = []
    first, real = 0, 0
    for place, example in enumerate(order):
        padded = lengths[order[first]] * (place - first + 1)
        if padded > PADDING_ALLOWED * (real + lengths[example]) and place > first:
            groups.append(order[first:place])
            first, real = place, 0
        real += int(lengths[example])
    return [*groups, order[first:]]


def _padding(lengths: NDArray[np.int64], device: torch.device) -> Padding:
    starts = np.cumsum([0, *lengths])
    buckets, gathers = [], []
    for group in _groups(lengths):
        width = int(lengths[group].max())
        steps = np.arange(width)
        # padding stands after every real query of its example, so causality hides it
        gathers.append(starts[group][:, None] + np.minimum(steps, lengths[group][:, None] - 1))  # (n, width)
        buckets.append(Bucket(count=len(group), width=width))
    gather = np.concatenate([part.reshape(-1) for part in gathers])
    places = np.empty(starts[-1], np.int64)
    places[gather[::-1]] = np.arange(len(gather))[::-1]  # backwards, so that the first of repeats stays
    return Padding(
        buckets=tuple(buckets),
        gather=torch.from_numpy(gather).to(device),
        places=torch.from_numpy(places).to(device),
    )
