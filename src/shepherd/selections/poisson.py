"""Draw each client independently: the Poisson sampling that privacy accounting assumes.

The probability is max(share, 1 / N) with N clients. A round may draw nobody; the adapter then stays as it
was.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from shepherd.config import PositiveShare, Table
from shepherd.core import ClientInfo, Cohort, Poisson, Sampling, Selection, names_at


class Config(Table):
    share: PositiveShare = 1.0
    """Probability that a client is asked in a round; at least 1 / N."""


def build(config: Config) -> Selection:
    """Build the independent draw."""

    def draw(clients: Sequence[ClientInfo], round: int, seed: int) -> Cohort:
        chance = max(config.share, 1 / len(clients))
        return names_at(clients, np.flatnonzero(np.random.default_rng(seed).random(len(clients)) < chance))

    def sampling(count: int) -> Sampling:
        return Poisson(chance=max(config.share, 1 / count))

    return Selection(draw=draw, share=config.share, may_be_empty=True, sampling=sampling)
