"""Local optimiser: how a gradient moves a stack of adapters."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

    from shepherd.training.stack import Stack


@dataclass(frozen=True, slots=True, kw_only=True)
class Optimiser:
    """A local optimiser of a stack of K adapters; each visit begins with a fresh state.

    All its computations must be elementwise, or within one client: no client's numbers may reach another's
    (law 1).
    """

    init: Callable[[Stack], Any]
    """The state before a visit's first step."""
    step: Callable[[Stack, Any, int, Tensor], Any]
    """Make one step in place along `stack.grads`: `(stack, state, number, rates) -> state`.

    `number` counts from 1. `rates` (K,) holds each client's learning rate, and is 0 for a client whose visit
    has ended: its adapter must not move then.
    """
    plain: bool = False
    """Whether a step is the learning rate times the gradient, as SGD's without momentum; with or without
    weight decay."""
