"""The median of the clients' changes, number by number.

    delta[j]  =  median over the clients k of delta_k[j]

Yin et al., arXiv 1803.01498. It stands bad clients as long as they are less than half of the round
(breakdown point 1/2), whatever they send. Each client counts the same: `federation.weights` is not used.

Limits: at least three updates. A and B are taken apart, so it neither sees a harmful pair of harmless factors
nor gives the same for other factors of the same products. With clients whose data differ the median is biased
towards the values of the middle, and in high dimensions its error grows with the square root of the numbers
of numbers; a bad client that stays within the others' spread is not seen. Of an even number of clients it is
the mean of the two in the middle. The cohort's updates are held.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from shepherd.config import Table
from shepherd.core import Aggregation, Context, ServerState, Update
from shepherd.core.robust import by_coordinate, held

SMALLEST = 3
"""Of two clients the median is the mean."""


class Config(Table):
    """The median has no keys."""


def build(config: Config) -> Aggregation:
    """Build the coordinate-wise median."""

    def combine(state: ServerState, updates: Iterable[Update], context: Context) -> Update:
        return by_coordinate(state, held(state, updates, SMALLEST, "the coordinate median"), median)

    return Aggregation(combine=combine, streams=False, is_mean=False, robust=True, smallest_cohort=SMALLEST)


def median(values: NDArray[np.float32]) -> NDArray[np.float64]:
    """The median of each column of (K, n), (n,)."""
    middle: NDArray[np.float64] = np.median(values.astype(np.float64), axis=0)
    return middle
