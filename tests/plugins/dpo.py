"""Direct preference optimisation (Rafailov et al., arXiv 2305.18290), as a local objective.

With d = beta (log pi(chosen) - log ref(chosen) - log pi(rejected) + log ref(rejected)), the loss of a pair is
-log sigmoid(d). Its gradient (equation 7) is -beta sigmoid(-d) (grad log pi(chosen) - grad log pi(rejected)),
a weighted sum of two cross-entropies. Pairs stand in the data as chosen, rejected, chosen, rejected, ...
"""

from __future__ import annotations

import numpy as np

from shepherd.config import PositiveFloat, Table
from shepherd.training.objective import Numbers, Objective, Scored


class Config(Table):
    beta: PositiveFloat = 0.1
    """How strongly the reference holds."""


def build(config: Config) -> Objective:
    """DPO over the pairs of a step, each counting alike."""

    def weights(step: Scored) -> Numbers:
        above = (step.policy - step.reference).reshape(-1, 2)  # (pairs, 2): chosen, rejected
        margin = config.beta * (above[:, 0] - above[:, 1])
        slope = config.beta / (1 + np.exp(margin)) / len(above)  # of the mean over pairs
        return np.stack([slope, -slope], axis=1).ravel()

    return Objective(weights=weights, group_size=2, needs_scores=True)
