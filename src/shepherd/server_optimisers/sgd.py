"""A plain step along the aggregate; with learning rate 1 it is FedAvg's server.

    theta  <-  theta + eta delta

Reddi et al., arXiv 2003.00295, with delta as the negative pseudo-gradient.
"""

from __future__ import annotations

from shepherd.config import PositiveFloat, Table
from shepherd.core import ServerOptimiser, ServerState, Update, moved


class Config(Table):
    learning_rate: PositiveFloat = 1.0
    """Step size along the aggregate; 1 is FedAvg."""


def build(config: Config) -> ServerOptimiser:
    """Build the server optimiser."""

    def apply(state: ServerState, update: Update) -> ServerState:
        if config.learning_rate == 1.0:  # the same bits, and no copy
            return moved(state, update.delta)
        return moved(state, update.delta.times(config.learning_rate))

    return ServerOptimiser(apply=apply, whole_step=config.learning_rate == 1.0)
