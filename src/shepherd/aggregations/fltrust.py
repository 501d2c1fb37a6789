"""A mean by trust: each update counts by how much it points where the server's own examples do (FLTrust).

    t_k    =  max(0, cos(delta_k, delta_0))
    delta  =  sum_k t_k (||delta_0|| / ||delta_k||) delta_k / sum_k t_k

with delta_0 the change that the server gets from its own examples, `data.root`, by the same visit through the
same trainer. Cao et al., arXiv 2012.13995. It stands any number of bad clients, also more than half, as far
as the server's examples are clean and like the clients'. What clients say of their weight does not count.

Cosines and norms are of `space`, see `shepherd.core.closeness`. A scaled update is the scaled factors'
changes, whose product is scaled to first order.

Limits: the server needs examples, a few dozen (the paper takes 100); if they are not like the clients',
honest ones lose their weight. A round in which no update points that way moves nothing. A bad client that
points that way at first and elsewhere in a part of the model is not seen. The cohort's updates are held.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from shepherd.config import Table
from shepherd.core import Aggregation, Context, ServerState, Update
from shepherd.core.closeness import TINY, Matrix, Space, gram, norms, reads_products
from shepherd.core.payload import require_same_layout
from shepherd.core.robust import combined, held
from shepherd.errors import FederationError


class Config(Table):
    space: Space = "both"
    """Where cosines and norms are measured: "product", "factors" or "both"."""


def build(config: Config) -> Aggregation:
    """Build the mean by trust."""

    def combine(state: ServerState, updates: Iterable[Update], context: Context) -> Update:
        cohort = held(state, updates, 1, "fltrust")
        if context.root is None:
            raise FederationError(
                "fltrust compares updates with the server's own, and there is none; name a file of examples"
                " in data.root"
            )
        require_same_layout(context.root, cohort[0].delta, "an update")
        changes = [context.root, *(update.delta for update in cohort)]
        own = [1.0, *(0.0 for _ in cohort)]  # clients may be bad in any number: the unit is the server's
        inner = gram(config.space, state.adapter, changes, context.rank, own)
        return combined(state, cohort, trust(inner).tolist(), scales(inner).tolist())

    return Aggregation(
        combine=combine,
        streams=False,
        is_mean=False,
        robust=True,
        chooses=True,
        needs_root=True,
        needs_model=reads_products(config.space),
    )


def trust(gram: Matrix) -> Matrix:
    """How much each client counts, (K,), from the inner products (K + 1, K + 1) with the server's first.

    >>> trust(np.array([[1.0, 2.0, -1.0], [2.0, 16.0, 0.0], [-1.0, 0.0, 1.0]])).tolist()
    [0.5, 0.0]
    """
    lengths = np.maximum(norms(gram), TINY)
    cosines: Matrix = gram[0, 1:] / lengths[0] / lengths[1:]
    trusted: Matrix = np.clip(cosines, 0.0, 1.0)
    return trusted


def scales(gram: Matrix) -> Matrix:
    """What makes each client's update as long as the server's, (K,)."""
    lengths = norms(gram)
    factors: Matrix = lengths[0] / np.maximum(lengths[1:], TINY)
    return factors
