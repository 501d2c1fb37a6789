"""Outer Nesterov momentum over the rounds, as DiLoCo has it.

    v      <-  beta v + delta
    theta  <-  theta + eta (delta + beta v)

with v = 0 at first and delta the mean of the clients' changes. Douillard et al., arXiv 2311.08105, who
recommend eta = 0.7 and beta = 0.9 for few rounds of many steps each. It is
`torch.optim.SGD(momentum=beta, nesterov=True)` along -delta.

Limits: in the long run a constant delta moves the adapter by eta / (1 - beta) of it a round, seven times as
far as FedAvg at these defaults, which suits local learning rates that are small. A tensor that does not
travel in a round keeps its velocity, and does not move.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from shepherd.config import PositiveFloat, ShareBelowOne, Table
from shepherd.core import ServerOptimiser, ServerState, Update, moved
from shepherd.server_optimisers.fedavgm import VELOCITY, init, velocity


class Config(Table):
    learning_rate: PositiveFloat = 0.7
    """Step size; DiLoCo's is 0.7."""
    momentum: ShareBelowOne = 0.9
    """Share of the velocity that is kept from round to round; 0 is plain SGD."""


def build(config: Config) -> ServerOptimiser:
    """Build the server optimiser."""

    def apply(state: ServerState, update: Update) -> ServerState:
        now = velocity(state, update, config.momentum)
        with np.errstate(over="ignore"):
            ahead = {name: change + config.momentum * now[name] for name, change in update.delta.items()}
            after = moved(state, {name: config.learning_rate * step for name, step in ahead.items()})
        return replace(after, optimiser={VELOCITY: now})

    return ServerOptimiser(init=init, apply=apply, needs_mean=True)
