"""The mean of the clients' changes without the largest and the smallest values, number by number.

    delta[j]  =  mean of delta_k[j] over the K - 2 t clients k in the middle,    t = floor(trim K)

Yin et al., arXiv 1803.01498. It stands t bad clients, whatever they send: with `trim` = 0.3 three of ten
(breakdown point `trim`, below 1/2). Each client counts the same: `federation.weights` is not used.

Limits: at least 1 / `trim` updates, so that something is cut, and at least three. A and B are taken apart, so
it neither sees a harmful pair of harmless factors nor gives the same for other factors of the same products.
A bad client that stays within the others' spread is not seen. The cohort's updates are held.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, Strict

from shepherd.config import Table
from shepherd.core import Aggregation, Context, ServerState, Update
from shepherd.core.robust import by_coordinate, held

ROUNDING = 1e-9
"""0.3 times 10 is 3, and not a little less."""


class Config(Table):
    trim: Annotated[float, Strict(), Field(gt=0.0, lt=0.5)] = 0.2
    """Share of the clients whose values are cut at either end; as large as the share of bad clients that is
    to be stood, and below a half."""


def build(config: Config) -> Aggregation:
    """Build the coordinate-wise trimmed mean."""
    smallest = max(3, math.ceil(1 / config.trim - ROUNDING))

    def combine(state: ServerState, updates: Iterable[Update], context: Context) -> Update:
        cohort = held(state, updates, smallest, f"a trimmed mean with trim = {config.trim:g}")
        return by_coordinate(state, cohort, lambda values: trimmed(values, config.trim))

    return Aggregation(combine=combine, streams=False, is_mean=False, robust=True, smallest_cohort=smallest)


def trimmed(values: NDArray[np.float32], trim: float) -> NDArray[np.float64]:
    """The mean of each column of (K, n) without its ends, (n,).

    >>> trimmed(np.array([[1.0], [2.0], [4.0], [900.0]], np.float32), 0.25).tolist()
    [3.0]
    """
    cut = math.floor(trim * len(values) + ROUNDING)
    middle = np.sort(values, axis=0)[cut : len(values) - cut]
    mean: NDArray[np.float64] = middle.mean(axis=0, dtype=np.float64)
    return mean
