"""The update that is closest to its neighbours (Krum), or the mean of several such updates (multi-Krum).

    score_k  =  sum of ||delta_k - delta_i||^2 over the K - f - 2 clients i that are closest to k

with f = `bad`. The result is the update with the smallest score, or with `keep` = m the plain mean of the m
updates with the smallest scores. Blanchard et al., NeurIPS 2017. It stands f bad clients of at least 2f + 3,
whatever they send. Each client counts the same: `federation.weights` is not used.

Distances are measured in `space`, see `shepherd.core.closeness`: of the products' changes, of the factors',
or of both, which sees a harmful pair of harmless factors as well as factors that were turned.

Limits: at least 2f + 3 updates, and `keep` + f + 2. Krum keeps one client a round, and with data that differ
among clients those far from the middle are never heard; a larger `keep` costs less without an attack. A
client whose `min_cohort` is above `keep` cannot be part of it. A bad client that stays within the others'
spread is not seen. The cohort's updates are held, and the distances take O(K^2) inner products.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from shepherd.config import NonNegativeInt, PositiveInt, Table
from shepherd.core import Aggregation, Context, ServerState, Update
from shepherd.core.closeness import Matrix, Space, gram, reads_products, squared_distances
from shepherd.core.robust import combined, held


class Config(Table):
    bad: NonNegativeInt = 1
    """Bad clients that a round stands, f; it needs at least 2f + 3 usable updates."""
    keep: PositiveInt = 1
    """Updates whose mean is taken: 1 is Krum, more is multi-Krum; a round needs `bad` + 2 more."""
    space: Space = "both"
    """Where distances are measured: "product", "factors" or "both"."""


def build(config: Config) -> Aggregation:
    """Build Krum, or multi-Krum."""
    smallest = max(2 * config.bad + 3, config.keep + config.bad + 2)
    rule = f"krum with bad = {config.bad} and keep = {config.keep}"

    def combine(state: ServerState, updates: Iterable[Update], context: Context) -> Update:
        cohort = held(state, updates, smallest, rule)
        inner = gram(config.space, state.adapter, [update.delta for update in cohort], context.rank)
        kept = np.argsort(scores(squared_distances(inner), config.bad), kind="stable")[: config.keep]
        return combined(state, cohort, [float(place in kept) for place in range(len(cohort))])

    return Aggregation(
        combine=combine,
        streams=False,
        is_mean=False,
        robust=True,
        chooses=True,
        smallest_cohort=smallest,
        needs_model=reads_products(config.space),
    )


def scores(squared: Matrix, bad: int) -> Matrix:
    """Krum's score of each client, (K,), from the squared distances (K, K); lower is closer.

    >>> line = np.array([0.0, 1.0, 2.0, 3.0, 9.0])
    >>> scores((line[:, None] - line) ** 2, bad=1).tolist()
    [5.0, 2.0, 2.0, 5.0, 85.0]
    """
    others = np.sort(squared + np.diag(np.full(len(squared), np.inf)), axis=1)
    total: Matrix = others[:, : len(squared) - bad - 2].sum(axis=1)
    return total
