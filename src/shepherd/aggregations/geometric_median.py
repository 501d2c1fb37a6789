"""The geometric median of the clients' changes (RFA): the point with the smallest mean distance to them.

    z  =  argmin_z sum_k p_k ||z - delta_k||

    by steps of  w_k = p_k / max(nu, ||z - delta_k||),    z = sum_k w_k delta_k / sum_k w_k

Pillutla et al., arXiv 1912.13445: smoothed Weiszfeld steps from the weighted mean. It stands bad clients as
long as their weights are less than half of the round's (breakdown point 1/2 by weight); `federation.weights`
decides p_k, and `federation.max_share` bounds what a client that claims too much can have.

z is a weighted mean, so all distances follow from the inner products of the updates, which are computed once.
They are of `space`, see `shepherd.core.closeness`. The result is the mean of A and of B with these weights,
so what averaging factors apart leaves out is left out here, too.

Limits: at least three updates. Bad clients keep a small weight: each moves the result as far as an update at
the usual distance would, towards itself. A bad client that stays within the others' spread is not seen. The
cohort's updates are held, and the distances take O(K^2) inner products.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from shepherd.config import PositiveFloat, PositiveInt, Table
from shepherd.core import Aggregation, Context, ServerState, Update
from shepherd.core.closeness import TINY, Matrix, Space, gram, median, norms, reads_products
from shepherd.core.robust import combined, held

SMALLEST = 3
"""Every point between two updates is a median of them."""
TOLERANCE = 1e-7
"""Largest relative change of a weight in a step after which there is no further one: the weight of an update
that is far too long must have become small enough, and not just small."""


class Config(Table):
    steps: PositiveInt = 200
    """Most steps. The paper takes a few; they cost nothing here, and an update that is a thousand times too
    long needs some ten until it is out of the way."""
    smoothing: PositiveFloat = 1e-6
    """Smallest distance that counts, nu, as a share of the median norm of the updates, by their weights."""
    space: Space = "both"
    """Where distances are measured: "product", "factors" or "both"."""


def build(config: Config) -> Aggregation:
    """Build the geometric median."""

    def combine(state: ServerState, updates: Iterable[Update], context: Context) -> Update:
        cohort = held(state, updates, SMALLEST, "the geometric median")
        start = np.array([update.weight for update in cohort])
        start /= start.sum()
        changes = [update.delta for update in cohort]
        inner = gram(config.space, state.adapter, changes, context.rank, start.tolist())
        found = weights(inner, start, config.steps, config.smoothing)
        return combined(state, cohort, found.tolist())

    return Aggregation(
        combine=combine,
        streams=False,
        is_mean=False,
        robust=True,
        smallest_cohort=SMALLEST,
        needs_model=reads_products(config.space),
    )


def weights(gram: Matrix, start: Matrix, steps: int, smoothing: float) -> Matrix:
    """The weights with which the updates' mean is their geometric median, (K,), summing to 1.

    Args:
        gram: inner products of the updates, (K, K).
        start: the weights p_k, (K,), summing to 1.
    """
    nearest = max(smoothing * median(norms(gram), start.tolist()), TINY)
    found = start
    for _ in range(steps):
        along = gram @ found
        squares = np.diag(gram) - 2 * along + found @ along
        pulls = start / np.maximum(nearest, np.sqrt(np.maximum(0.0, squares)))
        before, found = found, pulls / pulls.sum()
        if np.all(np.abs(found - before) <= TOLERANCE * before):
            break
    return found
