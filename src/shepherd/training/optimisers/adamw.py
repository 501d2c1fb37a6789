"""AdamW: Adam with decoupled weight decay (Loshchilov and Hutter, arXiv 1711.05101).

m <- b1 m + (1 - b1) g,  v <- b2 v + (1 - b2) g^2,
x <- x - lr (m / (1 - b1^t) / (sqrt(v / (1 - b2^t)) + epsilon) + decay x)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from shepherd.config import NonNegativeFloat, ShareBelowOne, Table
from shepherd.training.optimiser import Optimiser

if TYPE_CHECKING:
    from torch import Tensor

    from shepherd.training.stack import Stack

EPSILON = 1e-8
"""Added to the denominator; PyTorch's default."""


class Config(Table):
    betas: tuple[ShareBelowOne, ShareBelowOne] = (0.9, 0.999)
    """Decay rates (beta1, beta2) of the running means of the gradient and of its square."""
    weight_decay: NonNegativeFloat = 0.0
    """Decoupled weight decay: each step subtracts this times the learning rate times the parameter."""


class Moments(NamedTuple):
    """The running means of the gradient and of its square, flat like `Stack.values`."""

    first: Tensor
    second: Tensor


def build(config: Config) -> Optimiser:
    """AdamW with these settings."""
    beta1, beta2 = config.betas

    def init(stack: Stack) -> Moments:
        return Moments(stack.values.new_zeros(stack.values.shape), stack.values.new_zeros(stack.values.shape))

    def step(stack: Stack, moments: Moments, number: int, rates: Tensor) -> Moments:
        first, second = moments
        first.lerp_(stack.grads, 1 - beta1)
        second.mul_(beta2).addcmul_(stack.grads, stack.grads, value=1 - beta2)
        scale = (second / (1 - beta2**number)).sqrt_().add_(EPSILON)
        move = (first / (1 - beta1**number)).div_(scale).add_(stack.values, alpha=config.weight_decay)
        for values, moves in zip(stack.blocks(stack.values), stack.blocks(move), strict=True):
            values.sub_(moves.mul_(rates.view(-1, 1, 1)))
        return moments

    return Optimiser(init=init, step=step)
