"""RoLoRA: rounds train B and A in turn, B first; only the factor of the round is sent and averaged.

    rounds 1, 3, 5, ...:  B  <-  sum_k p_k B_k        rounds 2, 4, 6, ...:  A  <-  sum_k p_k A_k

All clients share the other factor, so the mean of the products is the product of the mean: averaging is
exact, the gap of `shepherd.core.factor_gap` is zero, and a client sends half of the adapter. Unlike
FFA-LoRA, A learns too. Chen et al., arXiv 2409.02346 and 2502.01755.

B is first because it starts at zero: the gradient of A is B^T times that of the product, so a first round
of A would not move it at all. A run of one round trains B alone, as FFA-LoRA does.
"""

from __future__ import annotations

from dataclasses import replace

from shepherd.algorithms import fedavg
from shepherd.config import Table
from shepherd.core import Algorithm
from shepherd.core.adapter import is_a, is_b


class Config(Table):
    """RoLoRA has no keys."""


def trainable(name: str, round: int) -> bool:
    """Train every tensor but A in even rounds, counted from 0, and every tensor but B in odd ones.

    >>> [trainable("q_proj.lora_A.weight", round) for round in range(3)]
    [False, True, False]
    >>> [trainable("q_proj.lora_B.weight", round) for round in range(3)]
    [True, False, True]
    """
    return not (is_b(name) if round % 2 else is_a(name))


def build(config: Config) -> Algorithm:
    """Build FedAvg of one factor a round."""
    return replace(fedavg.ALGORITHM, trainable=trainable)
