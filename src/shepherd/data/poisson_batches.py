"""Batches by Poisson sampling: each step draws every example with the same chance, independently.

The counterpart of `shepherd.data.cursor` for a client whose examples are protected by noise
(`privacy.example_level`). Who is in a step must stay secret, so the draws are never made again: there is no
order to continue in, a batch may be empty, and an example is reached with a probability (law 8).
"""

from __future__ import annotations

import numpy as np

from shepherd.data.cursor import Indices


def visit(size: int, steps: int, chance: float, rng: np.random.Generator) -> list[Indices]:
    """Indices for the optimiser steps of one visit: `steps` arrays, some of which may be empty.

    Raises:
        ValueError: the client is empty, or the chance is not in (0, 1].

    >>> [batch.tolist() for batch in visit(3, 2, 1.0, np.random.default_rng(0))]
    [[0, 1, 2], [0, 1, 2]]
    """
    if size < 1 or not 0.0 < chance <= 1.0:
        raise ValueError(f"size {size} must be positive and chance {chance} in (0, 1]")
    return [np.flatnonzero(rng.random(size) < chance) for _ in range(steps)]


def coverage(steps: int, chance: float) -> float:
    """Expected share of a client's examples that at least one of the steps held.

    >>> coverage(0, 0.5), coverage(2, 0.5)
    (0.0, 0.75)
    """
    return float(1.0 - (1.0 - chance) ** steps)
