"""What a step minimises: a weighted sum of the cross-entropies of its examples."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Scored:
    """The n examples of one client's optimiser step, group after group."""

    targets: NDArray[np.int64]
    """Trained tokens of each example, (n,)."""
    policy: Numbers
    """Each example's summed log-probability of its trained tokens, in nats, under the adapter as it stands,
    (n,); empty where the objective asks for none."""
    reference: Numbers
    """The same under the base alone, (n,)."""


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
    """Examples that are drawn together, one after another in the data: 2 for pairs of a chosen and a rejected
    answer. A batch size counts groups."""
    needs_scores: bool = False
    """Whether `weights` reads `policy` and `reference`, which cost a forward pass each."""
