"""FedAvg: plain local steps on every LoRA factor, and no memory between visits.

McMahan et al., arXiv 1602.05629; on LoRA factors it is FedIT, Zhang et al., arXiv 2305.05644. The mean of A
times the mean of B is not the mean of BA: `shepherd.core.factor_gap` measures by how much.
"""

from __future__ import annotations

from shepherd.config import Table
from shepherd.core import Algorithm, factor_gap


class Config(Table):
    """FedAvg has no keys."""


ALGORITHM = Algorithm(observe=factor_gap.observe)


def build(config: Config) -> Algorithm:
    """Build FedAvg."""
    return ALGORITHM
