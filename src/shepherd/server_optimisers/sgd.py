"""A plain step along the aggregate: FedAvg's server where the learning rate is 1.

    theta  <-  theta + eta delta

Reddi et al., arXiv 2003.00295, with delta as the negative pseudo-gradient.
"""

from __future__ import annotations

from shepherd.config import PositiveFloat, Table
from shepherd.core import ServerOptimiser, ServerState, Update, moved


class Config(Table):
    learning_rate: PositiveFloat = 1.0
    """How far the server goes along the aggregate; 1 is FedAvg."""


def build(config: Config) -> ServerOptimiser:
    """The step as a value."""

    def apply(state: ServerState, update: Update) -> ServerState:
        if config.learning_rate == 1.0:  # the same bits, and no copy
            return moved(state, update.delta)
        return moved(state, update.delta.times(config.learning_rate))

    return ServerOptimiser(apply=apply)
