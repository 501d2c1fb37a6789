"""FFA-LoRA: A keeps its initial values, and only B is trained, sent and averaged.

With one A for all, the mean of B_k A is (mean of B_k) A: averaging is exact, and the gap of
`shepherd.core.factor_gap` is zero. A client sends B alone. Sun et al., arXiv 2403.12313.
"""

from __future__ import annotations

from dataclasses import replace

from shepherd.algorithms import fedavg
from shepherd.config import Table
from shepherd.core import Algorithm
from shepherd.core.adapter import is_a


class Config(Table):
    """FFA-LoRA has no keys."""


def trainable(name: str, round: int) -> bool:
    """Train every tensor but A.

    >>> trainable("q_proj.lora_A.weight", 0), trainable("q_proj.lora_B.weight", 0)
    (False, True)
    """
    return not is_a(name)


def build(config: Config) -> Algorithm:
    """Build FedAvg of B, with A frozen."""
    return replace(fedavg.ALGORITHM, trainable=trainable)
