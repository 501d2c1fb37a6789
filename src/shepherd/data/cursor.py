"""Where a client is in its own data: visits go on where the last one stopped (law 8)."""

from __future__ import annotations

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
) -> tuple[list[Indices], int]:
    """The optimiser steps of one visit, and the new position.

    `position` counts the examples taken over all visits so far. Each epoch has an order of its own,
    drawn from (seed, epoch); a visit goes on mid-epoch, and a batch never straddles two epochs, so it
    never holds an example twice. `epochs` passes take `epochs * size` examples (rounded, at least
    one) from wherever the cursor is; `max_steps` counts batches instead; with neither, one epoch.

    Returns:
        Arrays of local indices in [0, size), 1 to `batch_size` long each; and the position after them.

    Raises:
        ValueError: the client is empty, or a number is out of range.

    >>> steps, position = visit(5, 3, max_steps=2, batch_size=4, seed=0)
    >>> [len(step) for step in steps], position
    ([2, 4], 9)
    """
    if size < 1 or batch_size < 1 or position < 0:
        raise ValueError(f"size {size}, batch_size {batch_size} and position {position} must be positive")
    steps: list[Indices] = []
    end = None if max_steps is not None else position + max(1, round((epochs or 1.0) * size))
    orders: dict[int, Indices] = {}
    while position < end if end is not None else len(steps) < (max_steps or 0):
        epoch, offset = divmod(position, size)
        count = min(batch_size, size - offset, batch_size if end is None else end - position)
        if epoch not in orders:
            orders = {epoch: order(size, epoch, seed)}
        steps.append(orders[epoch][offset : offset + count])
        position += count
    return steps, position


def order(size: int, epoch: int, seed: int) -> Indices:
    """The order of one epoch: a permutation of [0, size) that only (seed, epoch) decide."""
    return np.random.default_rng(seed_for(seed, "epoch", epoch)).permutation(size)


def coverage(size: int, position: int) -> float:
    """The share, in [0, 1], of a client's examples that were taken at least once.

    >>> coverage(8, 2), coverage(8, 20)
    (0.25, 1.0)
    """
    return min(1.0, position / size) if size else 1.0
