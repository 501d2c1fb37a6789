"""Direct preference optimisation (Rafailov et al., arXiv 2305.18290): pairs of a better and a worse answer.

With d = beta (log pi(chosen) - log ref(chosen) - log pi(rejected) + log ref(rejected)), the loss of a pair is
-log sigmoid(d). Its gradient (equation 7) is -beta sigmoid(-d) (grad log pi(chosen) - grad log pi(rejected)),
a weighted sum of two cross-entropies.
"""

from __future__ import annotations

import numpy as np
from pydantic import Field

from shepherd.config import PositiveFloat, Table
from shepherd.training.objective import Numbers, Objective, Scored, above_reference


class Config(Table):
    """The keys of this objective."""

    beta: PositiveFloat = 0.1
    """How strongly the reference holds: a smaller one lets the model move further from it."""
    label_smoothing: float = Field(default=0.0, ge=0.0, lt=0.5, strict=True)
    """Chance, from 0 to below 0.5, that the two answers of a pair are the wrong way round: conservative DPO
    (Mitchell, 2023)."""


def build(config: Config) -> Objective:
    """Build the objective: the mean loss of the pairs of a step."""
    beta, flipped = config.beta, config.label_smoothing

    def margins(step: Scored) -> Numbers:
        return beta * above_reference(step)

    def losses(step: Scored) -> Numbers:
        d = margins(step)
        return (1 - flipped) * np.logaddexp(0.0, -d) + flipped * np.logaddexp(0.0, d)

    def weights(step: Scored) -> Numbers:
        d = margins(step)
        slope = beta * ((1 - flipped) * _sigmoid(-d) - flipped * _sigmoid(d)) / len(d)
        return np.stack([slope, -slope], axis=1).ravel()

    return Objective(weights=weights, losses=losses, margins=margins, group_size=2, needs_scores=True)


def _sigmoid(x: Numbers) -> Numbers:
    return 0.5 * (1.0 + np.tanh(0.5 * x))  # without an overflow
