"""Zero-padded means of A and B, weighted by the norm of each client's product (HetLoRA's server).

    A = sum_k w_k pad(A_k),    B = sum_k w_k pad(B_k),    w_k = ||B_k A_k||_F / sum_j ||B_j A_j||_F

with the norm over all matrices of client k together. Cho et al., arXiv 2401.06432. A baseline for clients of
unequal ranks: the mean of A times the mean of B is not the mean of BA, ranks that few clients train shrink
towards zero, and a client's examples do not count. The aggregation "product" has none of these faults. The
paper's clients also prune their own ranks, which this package's do not. A client is sent its own ranks alone.

The `gap` in the log is that of plain averaging with the clients' weights, not with w_k, and as if the ranks
that a client lacks stayed; `energy_kept` counts what this rule loses.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace

from shepherd.config import Table
from shepherd.core import Aggregation, Context, Payload, ServerState, Update, product
from shepherd.core.local_factors import gather
from shepherd.core.sums import Sums, require_some, require_weight


class Config(Table):
    """Zero-padded means have no keys."""


def combine(state: ServerState, updates: Iterable[Update], context: Context) -> Update:
    """The zero-padded means; no change where every product is zero, and so nothing was learned."""
    sums, extra, norms, weight = Sums(), Sums(), 0.0, 0.0
    clients: list[str] = []
    for update in updates:
        require_weight(update)
        norm, change = _padded(state, update, context)
        sums.add(change, norm)
        extra.add(update.extra, update.weight)
        norms, weight = norms + norm, weight + update.weight
        clients += update.clients
        del update  # else it would live on while the next client is waited for (law 5)
    require_some(state.round, weight)
    return Update(
        round=state.round,
        delta=sums.mean(norms or 1.0),
        weight=weight,
        clients=tuple(clients),
        extra=extra.mean(weight),
    )


def _padded(state: ServerState, update: Update, context: Context) -> tuple[float, Payload]:
    """The norm of a client's products, and the change from the broadcast to its factors with zeros after."""
    cohort = gather(state, [replace(update, weight=1.0)])
    modules = list(cohort.modules(context, truncated=True))
    squares = [product.squared_norm(module.local[0]) for module in modules]
    padded = ((module, product.padded(module.local[0], module.rank)) for module in modules)
    return math.sqrt(math.fsum(squares)), cohort.changed(padded).delta


def build(config: Config) -> Aggregation:
    """Build the zero-padded means."""
    return Aggregation(combine=combine, is_mean=False, takes_ranks=True, truncates=True, needs_model=True)
