"""Server optimiser: how the aggregate moves the server's adapter."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np

from shepherd.core.adapter import Adapter
from shepherd.core.messages import Context, ServerState, Update
from shepherd.core.payload import Payload


def no_state(adapter: Adapter) -> Mapping[str, Payload]:
    """Start without an optimiser state."""
    return {}


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerOptimiser:
    """A step of the server's adapter along the aggregated update.

    `apply` returns the state with the adapter moved, and with its own `state.optimiser` if it keeps one.
    """

    apply: Callable[[ServerState, Update], ServerState]
    init: Callable[[Adapter], Mapping[str, Payload]] = no_state
    needs_mean: bool = False
    """Whether it is correct only for a weighted mean of the updates."""
    whole_step: bool = False
    """Whether the adapter moves by exactly the aggregate, as rules that factorise products again require."""
    rebase: Callable[[ServerState, Context], Adapter] | None = None
    """Writes the products of the moved adapter in other factors, after `apply` and after any noise: `(state
    of the finished round, context) -> adapter`. What is kept from round to round rank by rank would then
    refer to other directions, so an optimiser state, or an algorithm's memory of factors, is refused."""


def moved(state: ServerState, change: Mapping[str, np.ndarray]) -> ServerState:
    """The state with `change` added to its adapter; tensors without a change stay as they are."""
    with np.errstate(over="ignore"):  # the round loop refuses what is not finite, by name
        after = {name: state.adapter[name] + step for name, step in change.items()}
    return replace(state, adapter=Adapter({**state.adapter, **after}))
