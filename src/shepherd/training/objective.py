"""Objective: what a step minimises, a weighted sum of its examples' cross-entropies."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Scored:
    """The n examples of one client's optimiser step, in order of their groups."""

    targets: NDArray[np.int64]
    """Trained tokens of each example, (n,)."""
    policy: Numbers
    """Summed log-probability of each example's trained tokens under the current adapter, in nats, (n,); empty
    unless the objective needs scores."""
    reference: Numbers
    """Summed log-probability of each example's trained tokens under the reference, in nats, (n,): the base
    alone, or with the adapter that the training started from."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Objective:
    """How the trained tokens of an optimiser step are weighted.

    The gradient of a step is that of sum_i w_i CE_i, where CE_i is the summed cross-entropy of example i and
    w_i its weight, held constant. Supervised tuning has equal weights; the gradient of a preference loss such
    as DPO (arXiv 2305.18290, equation 7) is of this form too, with weights that depend on the sums.
    """

    weights: Callable[[Scored], Numbers]
    """The weight of each example's tokens, (n,)."""
    group_size: int = 1
    """Consecutive examples that are drawn together, and that a batch size counts as one: 2 for pairs of a
    chosen and a rejected answer, in this order."""
    needs_scores: bool = False
    """Whether `weights` reads `policy` and `reference`, which cost a forward pass each."""
    losses: Callable[[Scored], Numbers] | None = None
    """The loss of each group, (n / group_size,), which is reported and never trained on; None reports the
    mean cross-entropy of the trained tokens."""
    margins: Callable[[Scored], Numbers] | None = None
    """How much more the current adapter prefers the first answer of each pair than the reference does, in
    nats, (n / 2,): the implicit reward margin; None if the objective does not compare two answers."""


def above_reference(step: Scored) -> Numbers:
    """Log-ratio to the reference of each pair's chosen answer minus that of its rejected one, (n / 2,)."""
    own = (step.policy - step.reference).reshape(-1, 2)
    difference: Numbers = own[:, 0] - own[:, 1]
    return difference
