"""SCAFFOLD: control variates take the drift out of the clients' local steps.

Client k steps along

    grad f_k(y) - c_k + c

from the broadcast x, and after K steps whose learning rates sum to R has, by option II of the paper,

    c_k  <-  c_k - c + (x - y) / R,    sent as the change of c_k

and the server, over the cohort S of the N clients,

    c  <-  c + (|S| / N) mean of the changes of c_k

with all control variates 0 at first. Karimireddy et al., arXiv 1910.06378. With a constant local learning
rate it reaches the minimum of the mean of the clients' losses, where FedAvg stops at a point that depends on
the learning rate.

Limits: c is the mean of the c_k only if each client counts the same, is as likely to be asked, and sends what
it remembers having sent: so `federation.weights` must be "equal", and no transform may alter an update. A
client whose update is lost on the way moves its c_k all the same. (x - y) / R is a gradient under plain SGD
alone: under AdamW and with momentum it is refused. Clipping of the gradients (`tuning.clip_norm`) acts on the
corrected ones, which vanish at the minimum. A client sends and receives twice as much as in FedAvg.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from shepherd.algorithms import fedavg
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
    corner,
)

CONTROL = "control"


class Config(Table):
    """SCAFFOLD has no keys."""


def correct(
    name: str, grad: Any, param: Any, broadcast: Broadcast, memory: Mapping[str, Any], step: Step
) -> Any:
    """grad - c_k + c."""
    return grad - memory.get(name, 0.0) + broadcast.extra[name]  # (K, ...) - (K, ...) + (...)


def remember(memory: Payload, broadcast: Broadcast, result: LocalResult) -> tuple[Payload, Payload]:
    """Option II: c_k - c + (x - y) / R is kept, and its difference from c_k is sent."""
    changes = {
        name: -corner(broadcast.extra[name], moved.shape) - moved / result.rate_sum
        for name, moved in result.delta.items()
    }
    own = {name: (memory[name] if memory else 0.0) + change for name, change in changes.items()}
    return Adapter(own), Adapter(changes)


def expected(broadcast: Broadcast, client: ClientInfo) -> Expected:
    """The change of the control variate has the layout of the adapter's."""
    delta = fedavg.ALGORITHM.expects(broadcast, client).delta
    return Expected(delta=delta, extra=delta)


def server_init(adapter: Adapter) -> Mapping[str, Payload]:
    """The server's control variate is zero at first."""
    return {CONTROL: adapter.times(0.0)}


def server_remember(state: ServerState, update: Update, context: Context) -> Mapping[str, Payload]:
    """c + (|S| / N) mean of the changes."""
    share = len(update.clients) / max(context.clients, len(update.clients))
    return {CONTROL: Adapter(state.memory[CONTROL]).plus(update.extra, share)}


def build(config: Config) -> Algorithm:
    """Build both halves."""
    return replace(
        fedavg.ALGORITHM,
        correct=correct,
        remember=remember,
        expected=expected,
        server_init=server_init,
        server_extra=lambda state: state.memory[CONTROL],
        server_remember=server_remember,
        needs_sgd=True,
        needs_mean=True,
        needs_exact=True,
        needs_equal_weights=True,
    )
