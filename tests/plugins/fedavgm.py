"""FedAvgM: server momentum over the rounds' pseudo-gradients (Hsu et al., arXiv 1909.06335)."""

from __future__ import annotations

from dataclasses import replace

from shepherd.config import PositiveFloat, ShareBelowOne, Table
from shepherd.core import Adapter, ServerOptimiser, ServerState, Update, moved


class Config(Table):
    momentum: ShareBelowOne = 0.9
    """Of the velocity, that it keeps from round to round."""
    learning_rate: PositiveFloat = 0.2
    """How far the server goes along the velocity."""


def build(config: Config) -> ServerOptimiser:
    """v <- momentum v + delta;  theta <- theta + learning_rate v."""

    def init(adapter: Adapter) -> dict[str, Adapter]:
        return {"velocity": adapter.times(0.0)}

    def apply(state: ServerState, update: Update) -> ServerState:
        before = state.optimiser["velocity"]
        now = {name: config.momentum * before[name] + change for name, change in update.delta.items()}
        velocity = Adapter({**before, **now})
        after = moved(state, {name: config.learning_rate * velocity[name] for name in now})
        return replace(after, optimiser={"velocity": velocity})

    return ServerOptimiser(init=init, apply=apply)
