"""Draw a fixed number of clients uniformly, without replacement.

As in FedIT (arXiv 2305.05644) and McMahan et al. (arXiv 1602.05629).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from shepherd.config import PositiveShare, Table
from shepherd.core import ClientInfo, Cohort, FixedSize, Sampling, Selection, names_at, share_of


class Config(Table):
    share: PositiveShare = 1.0
    """Share of the clients that each round asks; at least one client."""


def build(config: Config) -> Selection:
    """Build the draw without replacement."""

    def draw(clients: Sequence[ClientInfo], round: int, seed: int) -> Cohort:
        rng = np.random.default_rng(seed)
        number = share_of(len(clients), config.share)
        return names_at(clients, rng.choice(len(clients), number, replace=False))

    def sampling(count: int) -> Sampling:
        return FixedSize(size=share_of(count, config.share), of=count)

    return Selection(draw=draw, share=config.share, sampling=sampling)
