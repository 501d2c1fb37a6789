"""SCAFFOLD, with option II of its control variates (Karimireddy et al., arXiv 1910.06378); for SGD."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from shepherd.config import Table
from shepherd.core import (
    Adapter,
    Algorithm,
    Broadcast,
    ClientInfo,
    Context,
    Expected,
    LocalResult,
    Payload,
    ServerState,
    Step,
    Update,
    shapes_of,
)


class Config(Table):
    """Nothing to set."""


def correct(
    name: str, grad: Any, param: Any, broadcast: Broadcast, memory: Mapping[str, Any], step: Step
) -> Any:
    """grad - c_i + c, with the client's and the server's control variates."""
    own = memory.get(name, 0.0)
    return grad - own + broadcast.extra[name]


def remember(memory: Payload, broadcast: Broadcast, result: LocalResult) -> tuple[Payload, Payload]:
    """c_i+ = c_i - c + (x - y_i) / (K eta); what is sent is c_i+ - c_i."""
    moved = {name: -broadcast.extra[name] - tensor / result.rate_sum for name, tensor in result.delta.items()}
    own = {name: (memory[name] if memory else 0.0) + change for name, change in moved.items()}
    return Adapter(own), Adapter(moved)


def expected(broadcast: Broadcast, client: ClientInfo) -> Expected:
    """The change of the control variate has the layout of the adapter's."""
    return Expected(delta=shapes_of(broadcast.adapter), extra=shapes_of(broadcast.adapter))


def server_init(adapter: Adapter) -> Mapping[str, Payload]:
    """The server's control variate is zero at first."""
    return {"control": adapter.times(0.0)}


def server_remember(state: ServerState, update: Update, context: Context) -> Mapping[str, Payload]:
    """c + (|S| / N) mean of the changes."""
    share = len(update.clients) / max(context.clients, len(update.clients))
    before = Adapter(state.memory["control"])
    return {"control": before.plus(update.extra, share)}


def build(config: Config) -> Algorithm:
    """The two halves."""
    return Algorithm(
        correct=correct,
        remember=remember,
        expected=expected,
        server_init=server_init,
        server_extra=lambda state: state.memory["control"],
        server_remember=server_remember,
    )
