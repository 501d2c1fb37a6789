"""Identity preference optimisation (Azar et al., arXiv 2310.12036, equation 17): a fixed margin a pair.

With h the difference of the two answers' mean log-ratios to the reference, per trained token, the loss of a
pair is (h - 1 / (2 beta))^2. The paper leaves open how log-probabilities count by length; means per token are
what its authors used, and TRL.
"""

from __future__ import annotations

import numpy as np

from shepherd.config import PositiveFloat, Table
from shepherd.training.objective import Numbers, Objective, Scored, above_reference


class Config(Table):
    """The keys of this objective."""

    beta: PositiveFloat = 0.1
    """How strongly the reference holds: the margin that is aimed at is 1 / (2 beta), in nats a token."""


def build(config: Config) -> Objective:
    """Build the objective: the mean loss of the pairs of a step."""
    beta = config.beta

    def missed(step: Scored) -> Numbers:
        own = ((step.policy - step.reference) / _counts(step)).reshape(-1, 2)
        difference: Numbers = own[:, 0] - own[:, 1] - 1 / (2 * beta)
        return difference

    def weights(step: Scored) -> Numbers:
        slope = -2 * missed(step) / (len(step.targets) // 2)
        return np.stack([slope, -slope], axis=1).ravel() / _counts(step)

    return Objective(
        weights=weights,
        losses=lambda step: missed(step) ** 2,
        margins=lambda step: beta * above_reference(step),
        group_size=2,
        needs_scores=True,
    )


def _counts(step: Scored) -> Numbers:
    return np.maximum(step.targets, 1).astype(np.float64)
