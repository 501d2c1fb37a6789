"""The weighted mean of the clients' changes.

    delta  =  sum_k (n_k / n) delta_k,    n = sum_k n_k

over the clients k of one round, for A and for B separately; `federation.weights` decides n_k, and with "size"
it is the number of examples that client k holds, as in McMahan et al. (arXiv 1602.05629).
"""

from __future__ import annotations

from collections.abc import Iterable

from shepherd.config import Table
from shepherd.core import Aggregation, Context, ServerState, Update
from shepherd.core.ranks import require_whole_rank
from shepherd.core.sums import Sums, require_some, require_weight


class Config(Table):
    """The mean has no keys."""


def mean(state: ServerState, updates: Iterable[Update], context: Context) -> Update:
    """The weighted mean of `delta` and of `extra`, in one pass that holds one update at a time.

    Sums are float64 in the order of `updates`: the same order gives the same bits, another order differs
    by float64 rounding before the result is rounded to float32, and one update comes back bit for bit.

    Raises:
        FederationError: there is no update, a weight is not a finite number of at least 0, or all weights are
            zero; a mean of nothing is not zero.
        AdapterError: two updates differ in names or shapes, or a client has another rank than the adapter.
    """
    delta, extra, weight = Sums(), Sums(), 0.0
    clients: list[str] = []
    for update in updates:
        require_weight(update)
        require_whole_rank(state.adapter, update)
        delta.add(update.delta, update.weight)
        extra.add(update.extra, update.weight)
        weight += update.weight
        clients += update.clients
        del update  # else it would live on while the next client is waited for (law 5)
    require_some(state.round, weight)
    return Update(
        round=state.round,
        delta=delta.mean(weight),
        weight=weight,
        clients=tuple(clients),
        extra=extra.mean(weight),
    )


AGGREGATION = Aggregation(combine=mean, is_mean=True)


def build(config: Config) -> Aggregation:
    """Build the weighted mean."""
    return AGGREGATION
