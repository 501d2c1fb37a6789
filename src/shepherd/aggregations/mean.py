"""The weighted mean of the clients' changes.

    delta  =  sum_k (n_k / n) delta_k,    n = sum_k n_k

over the clients k of one round, for A and for B separately; `federation.weights` decides n_k, and with "size"
it is the number of examples that client k holds, as in McMahan et al. (arXiv 1602.05629).
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from shepherd.config import Table
from shepherd.core import Adapter, Aggregation, Context, Payload, ServerState, Update, require_same_layout
from shepherd.errors import FederationError

Sums = dict[str, NDArray[np.float64]]


class Config(Table):
    """The mean has no keys."""


def mean(state: ServerState, updates: Iterable[Update], context: Context) -> Update:
    """The weighted mean of `delta` and of `extra`, in one pass that holds one update at a time.

    Sums are float64 in the order of `updates`: the same order gives the same bits, another order differs
    by float64 rounding before the result is rounded to float32, and one update comes back bit for bit.

    Raises:
        FederationError: there is no update, or all weights are zero; a mean of nothing is not zero.
        AdapterError: two updates differ in names or shapes.
    """
    delta: Sums = {}
    extra: Sums = {}
    weight = 0.0
    clients: list[str] = []
    for update in updates:
        _add(delta, update.delta, update.weight, first=not clients)
        _add(extra, update.extra, update.weight, first=not clients)
        weight += update.weight
        clients += update.clients
        del update  # else it would live on while the next client is waited for (law 5)
    if not weight > 0:
        raise FederationError(
            f"round {state.round + 1} has no update with a weight above zero; "
            "give its clients examples, or set federation.weights"
        )
    return Update(
        round=state.round,
        delta=_divide(delta, weight),
        weight=weight,
        clients=tuple(clients),
        extra=_divide(extra, weight),
    )


def _add(sums: Sums, tensors: Payload, weight: float, *, first: bool) -> None:
    if first:
        sums.update({name: np.zeros(tensor.shape) for name, tensor in tensors.items()})
    require_same_layout(sums, tensors, "an update")
    for name, tensor in tensors.items():
        sums[name] += tensor.astype(np.float64) * weight


def _divide(sums: Sums, weight: float) -> Adapter:
    with np.errstate(over="ignore"):  # the round loop refuses what is not finite, by name
        return Adapter({name: total / weight for name, total in sums.items()})


AGGREGATION = Aggregation(combine=mean)


def build(config: Config) -> Aggregation:
    """Build the weighted mean."""
    return AGGREGATION
