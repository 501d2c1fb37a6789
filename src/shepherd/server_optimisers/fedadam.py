"""FedAdam: Adam over the rounds.

    m      <-  beta1 m + (1 - beta1) delta
    v      <-  beta2 v + (1 - beta2) delta^2
    theta  <-  theta + eta m / (sqrt(v) + tau)

with m = 0 and v = tau^2 at first, delta the mean of the clients' changes, and everything elementwise. Reddi
et al., arXiv 2003.00295, Algorithm 2. As there, and unlike Adam, m and v are not corrected for their bias:
v begins at tau^2 and not at 0, and the first step is of (1 - beta1) delta.

Limits: tau must be about as large as a coordinate's change in a round or smaller, since far above these the
method is FedAvgM with a step of eta / tau. A coordinate's step is at most eta / sqrt(1 - beta2), whatever the
changes are, so clients of unequal sizes of change are evened out. A tensor that does not travel in a round
keeps its moments, and does not move.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shepherd.config import PositiveFloat, ShareBelowOne, Table
from shepherd.core import Adapter, ServerOptimiser, ServerState, Update, moved

FIRST, SECOND = "first", "second"
Second = Callable[[NDArray[Any], NDArray[Any]], NDArray[Any]]
"""`(v, delta^2) -> v`."""


class Config(Table):
    learning_rate: PositiveFloat = 0.01
    """Step size; from 0.001 to 0.1 is usual for LoRA factors."""
    betas: tuple[ShareBelowOne, ShareBelowOne] = (0.9, 0.99)
    """Shares (beta1, beta2) of the running means of the change and of its square that are kept."""
    tau: PositiveFloat = 0.001
    """Degree of adaptivity: added to the denominator, and its square is what v begins with."""


def build(config: Config) -> ServerOptimiser:
    """Build the server optimiser."""
    beta1, beta2 = config.betas
    return adaptive(
        lambda v, square: beta2 * v + (1 - beta2) * square, config.learning_rate, beta1, config.tau
    )


def adaptive(second: Second, learning_rate: float, beta1: float, tau: float) -> ServerOptimiser:
    """Algorithm 2 of arXiv 2003.00295; `second` is what sets FedAdagrad, FedYogi and FedAdam apart."""

    def init(adapter: Adapter) -> dict[str, Adapter]:
        floor = {name: np.full_like(tensor, tau**2) for name, tensor in adapter.items()}
        return {FIRST: adapter.times(0.0), SECOND: Adapter(floor)}

    def apply(state: ServerState, update: Update) -> ServerState:
        before = {part: dict(state.optimiser[part]) for part in (FIRST, SECOND)}
        m, v, step = {}, {}, {}
        with np.errstate(over="ignore", invalid="ignore"):  # the round loop refuses what is not finite
            for name, change in update.delta.items():
                m[name] = beta1 * before[FIRST][name] + (1 - beta1) * change
                v[name] = second(before[SECOND][name], np.square(change))
                step[name] = learning_rate * m[name] / (np.sqrt(v[name]) + tau)
        memory = {FIRST: Adapter({**before[FIRST], **m}), SECOND: Adapter({**before[SECOND], **v})}
        return replace(moved(state, step), optimiser=memory)

    return ServerOptimiser(init=init, apply=apply, needs_mean=True)
