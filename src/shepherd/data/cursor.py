"""Position of a client in its own data: a visit continues where the last one stopped (law 8)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from shepherd.core import seed_for

Indices = NDArray[np.int64]


def visit(
    size: int,
    position: int,
    *,
    epochs: float | None = None,
    max_steps: int | None = None,
    batch_size: int,
    seed: int,
    min_batch: int = 1,
    min_examples: int = 1,
) -> tuple[list[Indices], int]:
    """Indices for the optimiser steps of one visit, and the new position.

    `position` counts the examples taken over all visits so far. Each epoch has an order of its own,
    drawn from (seed, epoch); a visit may start mid-epoch, and a batch never spans two epochs, so it
    never holds an example twice. `epochs` passes take `epochs * size` examples (rounded, at least
    one) from wherever the cursor is; `max_steps` counts batches instead; with neither, one epoch.

    No step is shorter than `min_batch`: a shorter last batch is merged into the one before it, and `epochs`
    end at the border of an epoch that is nearer than that.

    A visit that spans two epochs may hold an example twice. Where it would then take fewer
    than `min_examples` different ones, it begins with the next epoch, and the rest of this one is
    skipped: so it takes as many as a visit from the start of an epoch does.

    Returns:
        Arrays of local indices in [0, size), `min_batch` to `batch_size + min_batch - 1` long each (shorter
        only where the client holds fewer); and the position after them.

    Raises:
        ValueError: the client is empty, or a number is out of range.

    >>> steps, position = visit(5, 3, max_steps=2, batch_size=4, seed=0)
    >>> [len(step) for step in steps], position
    ([2, 4], 9)
    >>> [len(step) for step in visit(33, 0, batch_size=16, seed=0, min_batch=8)[0]]
    [16, 17]
    """
    if size < 1 or batch_size < 1 or position < 0 or min_batch < 1:
        raise ValueError(
            f"size {size}, batch_size {batch_size}, min_batch {min_batch} and position {position} must be"
            " positive"
        )
    steps: list[Indices] = []
    position = begin(size, position, min_batch)
    target = max(1, round((epochs or 1.0) * size))
    stop = end(size, position, target, min_batch) if max_steps is None else None
    orders: dict[int, Indices] = {}
    while position < stop if stop is not None else len(steps) < (max_steps or 0):
        epoch, offset = divmod(position, size)
        left = size - offset if stop is None else min(size - offset, stop - position)
        count = left if left < batch_size + min_batch else batch_size
        if epoch not in orders:
            orders = {epoch: order(size, epoch, seed)}
        steps.append(orders[epoch][offset : offset + count])
        position += count
    start = position - sum(map(len, steps))
    if min_examples > 1 and start % size and different(steps) < min_examples:
        return visit(
            size,
            start + size - start % size,
            epochs=epochs,
            max_steps=max_steps,
            batch_size=batch_size,
            seed=seed,
            min_batch=min_batch,
        )
    return steps, position


def different(steps: Sequence[Indices]) -> int:
    """Number of different examples in the steps of a visit."""
    return len(np.unique(np.concatenate(steps)))


def begin(size: int, position: int, min_batch: int) -> int:
    """Position at which a visit begins: a rest of an epoch that is too short for a step is skipped.

    No visit leaves such a rest; there is one only where `min_batch` was raised since.
    """
    left = size - position % size
    return position + left if left < min(min_batch, size) else position


def end(size: int, start: int, target: int, min_batch: int) -> int:
    """Position after a visit of about `target` examples: an epoch's border, if one is within `min_batch`."""
    stop = start + target
    over = stop % size
    if 0 < over < min_batch and stop - over > start:
        return stop - over
    return stop + size - over if over and size - over < min_batch else stop


def batches(examples: int, batch_size: int, min_batch: int = 1) -> int:
    """Number of steps that `visit` makes of this many examples of one epoch.

    >>> batches(33, 16), batches(33, 16, 8), batches(0, 16)
    (3, 2, 0)
    """
    return max(0, examples - min_batch) // batch_size + 1 if examples else 0


def taken(
    size: int,
    *,
    visits: int = 1,
    epochs: float | None = None,
    max_steps: int | None = None,
    batch_size: int,
    min_batch: int = 1,
) -> tuple[int, int]:
    """Steps and examples of a client's first visits in a row: as `visit` makes them, without their indices.

    Later visits are as long as these are on average: each epoch has the same steps.

    >>> taken(5, max_steps=2, batch_size=4), taken(5, visits=2, max_steps=2, batch_size=4)
    ((2, 5), (4, 10))
    >>> taken(2, max_steps=4, batch_size=32)
    (4, 8)
    """
    each = batches(size, batch_size, min_batch)
    if max_steps is not None:
        whole, rest = divmod(visits * max_steps, each)
        return visits * max_steps, whole * size + rest * batch_size
    target, steps, position = max(1, round((epochs or 1.0) * size)), 0, 0
    for _ in range(visits):
        position = begin(size, position, min_batch)
        stop = end(size, position, target, min_batch)
        whole, rest = divmod(stop, size)
        if position // size == whole:
            steps += batches(stop - position, batch_size, min_batch)
        else:
            steps += batches(-position % size, batch_size, min_batch)
            steps += (whole + -position // size) * each + batches(rest, batch_size, min_batch)
        position = stop
    return steps, position


def order(size: int, epoch: int, seed: int) -> Indices:
    """Order of the examples in one epoch: a permutation of [0, size) determined by (seed, epoch)."""
    return np.random.default_rng(seed_for(seed, "epoch", epoch)).permutation(size)


def coverage(size: int, position: int) -> float:
    """Share of a client's examples, in [0, 1], that were taken at least once.

    >>> coverage(8, 2), coverage(8, 20)
    (0.25, 1.0)
    """
    return min(1.0, position / size) if size else 1.0
