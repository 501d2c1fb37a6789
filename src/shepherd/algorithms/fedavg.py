"""FedAvg on LoRA factors: the server moves by the weighted mean of what its clients changed.

    theta  <-  theta + sum_k (n_k / n) (theta_k - theta),    n = sum_k n_k

over the clients k of one round, for A and for B apart; n_k is what `federation.weights` says, and with
"size" what they call so, the examples that client k holds. McMahan et al., arXiv 1602.05629; on LoRA factors
it is FedIT, Zhang et al., arXiv 2305.05644. The mean of A times the mean of B is not the mean of BA:
`shepherd.audit` measures by how much.

The pieces are plain functions, so that another method is `fedavg.ALGORITHM._replace(...)`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shepherd.core import Adapter, Algorithm, Broadcast, ServerState, Update, require_same_layout
from shepherd.errors import FederationError
from shepherd.settings import Table

Sums = dict[str, NDArray[np.float64]]


class Config(Table):
    """FedAvg has nothing to set."""


def init(adapter: Adapter) -> ServerState:
    """Round 0: the adapter to start from, and no other memory."""
    return ServerState(round=0, adapter=adapter)


def broadcast(state: ServerState, seed: int) -> Broadcast:
    """Send every client the whole adapter; one that is new needs A too, even where it is frozen."""
    return Broadcast(round=state.round, adapter=state.adapter, seed=seed, transforms=state.transforms)


def trainable(name: str, round: int) -> bool:
    """Every tensor is trained in every round."""
    return True


def correct(name: str, grad: Any, param: Any, broadcast: Broadcast, memory: Mapping[str, Any]) -> Any:
    """A local step is a plain gradient step."""
    return grad


def remember(memory: Adapter, broadcast: Broadcast, delta: Adapter, steps: int) -> tuple[Adapter, Adapter]:
    """A client keeps nothing between its visits (`memory` is empty before the first) and adds nothing."""
    return memory, Adapter()


def mean(state: ServerState, updates: Iterable[Update]) -> Update:
    """sum_k w_k delta_k / sum_k w_k, and the same of `extra`; one pass, one update held at a time.

    Sums are float64 in the order of `updates`: the same order gives the same bits, another order differs
    by float64 rounding before the result is rounded to float32, and one update comes back bit for bit.

    Raises:
        FederationError: there is no update, or all weights are zero; a mean of nothing is not zero.
        AdapterError: two updates differ in names or shapes.
    """
    delta: Sums = {}
    extra: Sums = {}
    weight, count = 0.0, 0
    for update in updates:
        _add(delta, update.delta, update.weight, first=not count)
        _add(extra, update.extra, update.weight, first=not count)
        weight += update.weight
        count += update.count
        del update  # else it would live on while the next client is waited for (law 5)
    if not weight > 0:
        raise FederationError(
            f"round {state.round + 1} has no update with a weight above zero; "
            "give its clients examples, or set federation.weights"
        )
    return Update(
        round=state.round,
        delta=_divided(delta, weight),
        weight=weight,
        count=count,
        extra=_divided(extra, weight),
    )


def apply(state: ServerState, update: Update) -> ServerState:
    """theta + delta for the tensors that travelled; the others stay. `rounds` counts the round."""
    with np.errstate(over="ignore"):  # `rounds` refuses what is not finite, by name
        moved = {name: state.adapter[name] + change for name, change in update.delta.items()}
    return replace(state, adapter=Adapter({**state.adapter, **moved}))


def _add(sums: Sums, tensors: Adapter, weight: float, *, first: bool) -> None:
    if first:
        sums.update({name: np.zeros(tensor.shape) for name, tensor in tensors.items()})
    require_same_layout(sums, tensors, "an update")
    for name, tensor in tensors.items():
        sums[name] += tensor.astype(np.float64) * weight


def _divided(sums: Sums, weight: float) -> Adapter:
    with np.errstate(over="ignore"):  # `rounds` refuses what is not finite, by name
        return Adapter({name: total / weight for name, total in sums.items()})


ALGORITHM = Algorithm(init, broadcast, trainable, correct, remember, mean, apply)


def build(config: Config) -> Algorithm:
    """FedAvg as a value."""
    return ALGORITHM
