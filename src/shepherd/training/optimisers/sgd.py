"""Stochastic gradient descent, optionally with momentum and decoupled weight decay.

m <- momentum m + g,  x <- x - lr (m + decay x)

SCAFFOLD (arXiv 1910.06378) and FedNova (arXiv 2007.07481) are derived for SGD, and correct only with it. Its
learning rate is larger than AdamW's, since a step is proportional to the gradient: 0.1 to 1 is usual for
LoRA.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from shepherd.config import NonNegativeFloat, ShareBelowOne, Table
from shepherd.training.optimiser import Optimiser

if TYPE_CHECKING:
    from torch import Tensor

    from shepherd.training.stack import Stack


class Config(Table):
    momentum: ShareBelowOne = 0.0
    """Momentum: the share of the last step's direction that is kept; 0 is plain SGD."""
    weight_decay: NonNegativeFloat = 0.0
    """Decoupled weight decay: each step subtracts this times the learning rate times the parameter."""


def build(config: Config) -> Optimiser:
    """SGD with these settings."""

    def init(stack: Stack) -> Tensor | None:
        return stack.values.new_zeros(stack.values.shape) if config.momentum else None

    def step(stack: Stack, momentum: Tensor | None, number: int, rates: Tensor) -> Tensor | None:
        if momentum is not None:
            momentum.mul_(config.momentum).add_(stack.grads)
        move = stack.grads if momentum is None else momentum
        move = move.add(stack.values, alpha=config.weight_decay)
        for values, moves in zip(stack.blocks(stack.values), stack.blocks(move), strict=True):
            values.sub_(moves.mul_(rates.view(-1, 1, 1)))
        return momentum

    return Optimiser(init=init, step=step, plain=not config.momentum)
