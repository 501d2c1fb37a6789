"""FedAdagrad: Adagrad over the rounds.

    m      <-  beta1 m + (1 - beta1) delta
    v      <-  v + delta^2
    theta  <-  theta + eta m / (sqrt(v) + tau)

with m = 0 and v = tau^2 at first, delta the mean of the clients' changes, and everything elementwise. Reddi
et al., arXiv 2003.00295, Algorithm 2; their experiments have beta1 = 0, which is the default here.

Limits: v only grows, so the steps become smaller with the rounds, as 1 / sqrt(rounds) where changes stay as
large. A tensor that does not travel in a round keeps its moments, and does not move.
"""

from __future__ import annotations

import numpy as np

from shepherd.config import PositiveFloat, ShareBelowOne, Table
from shepherd.core import ServerOptimiser
from shepherd.server_optimisers import fedadam


class Config(Table):
    learning_rate: PositiveFloat = 0.01
    """Step size; from 0.001 to 0.1 is usual for LoRA factors."""
    beta1: ShareBelowOne = 0.0
    """Share of the running mean of the change that is kept."""
    tau: PositiveFloat = 0.001
    """Degree of adaptivity: added to the denominator, and its square is what v begins with."""


def build(config: Config) -> ServerOptimiser:
    """Build the server optimiser."""
    return fedadam.adaptive(np.add, config.learning_rate, config.beta1, config.tau)
