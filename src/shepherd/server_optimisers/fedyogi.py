"""FedYogi: Adam over the rounds, whose second moment moves by no more than the change itself.

    m      <-  beta1 m + (1 - beta1) delta
    v      <-  v - (1 - beta2) delta^2 sign(v - delta^2)
    theta  <-  theta + eta m / (sqrt(v) + tau)

with m = 0 and v = tau^2 at first, delta the mean of the clients' changes, and everything elementwise. Reddi
et al., arXiv 2003.00295, Algorithm 2, without a correction for bias, as there. After a round of large changes
v falls more slowly than FedAdam's, by what the small ones add up to. The square is of delta, not of m as in
some published code.

Limits: those of `fedadam`.
"""

from __future__ import annotations

import numpy as np

from shepherd.config import PositiveFloat, ShareBelowOne, Table
from shepherd.core import ServerOptimiser
from shepherd.server_optimisers import fedadam


class Config(Table):
    learning_rate: PositiveFloat = 0.01
    """Step size; from 0.001 to 0.1 is usual for LoRA factors."""
    betas: tuple[ShareBelowOne, ShareBelowOne] = (0.9, 0.99)
    """Share beta1 of the running mean of the change that is kept, and beta2 for the second moment."""
    tau: PositiveFloat = 0.001
    """Degree of adaptivity: added to the denominator, and its square is what v begins with."""


def build(config: Config) -> ServerOptimiser:
    """Build the server optimiser."""
    beta1, beta2 = config.betas
    return fedadam.adaptive(
        lambda v, square: v - (1 - beta2) * square * np.sign(v - square),
        config.learning_rate,
        beta1,
        config.tau,
    )
