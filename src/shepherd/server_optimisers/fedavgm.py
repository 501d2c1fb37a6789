"""FedAvgM: momentum over the rounds.

    v      <-  beta v + delta
    theta  <-  theta + eta v

with v = 0 at first and delta the mean of the clients' changes. Hsu et al., arXiv 1909.06335. It is
`torch.optim.SGD(momentum=beta)` along -delta.

Limits: in the long run a constant delta moves the adapter by eta / (1 - beta) of it a round, so eta = 0.1 at
beta = 0.9 goes as far as FedAvg, and eta = 1 ten times as far. A tensor that does not travel in a round keeps
its velocity, and does not move.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from shepherd.config import PositiveFloat, ShareBelowOne, Table
from shepherd.core import Adapter, ServerOptimiser, ServerState, Update, moved

VELOCITY = "velocity"


class Config(Table):
    learning_rate: PositiveFloat = 0.1
    """Step size along the velocity; from 0.1 to 1 is usual at a momentum of 0.9."""
    momentum: ShareBelowOne = 0.9
    """Share of the velocity that is kept from round to round; 0 is plain SGD."""


def init(adapter: Adapter) -> dict[str, Adapter]:
    """No velocity."""
    return {VELOCITY: adapter.times(0.0)}


def velocity(state: ServerState, update: Update, momentum: float) -> Adapter:
    """The velocity after a round; tensors that did not travel keep theirs."""
    before = state.optimiser[VELOCITY]
    with np.errstate(over="ignore"):  # the round loop refuses what is not finite, by name
        now = {name: momentum * before[name] + change for name, change in update.delta.items()}
    return Adapter({**before, **now})


def build(config: Config) -> ServerOptimiser:
    """Build the server optimiser."""

    def apply(state: ServerState, update: Update) -> ServerState:
        now = velocity(state, update, config.momentum)
        with np.errstate(over="ignore"):
            after = moved(state, {name: config.learning_rate * now[name] for name in update.delta})
        return replace(after, optimiser={VELOCITY: now})

    return ServerOptimiser(init=init, apply=apply, needs_mean=True)
