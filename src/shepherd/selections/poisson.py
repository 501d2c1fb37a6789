"""Draw each client by a coin of its own: the sampling that privacy accounting assumes.

The chance is max(share, 1 / N) over N clients. A round may draw nobody; it then passes with the adapter as it
was.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from shepherd.config import PositiveShare, Table
from shepherd.core import ClientInfo, Cohort, Selection, names_at


class Config(Table):
    share: PositiveShare = 1.0
    """Chance of each client to be asked in a round; 1 / N where that is more."""


def build(config: Config) -> Selection:
    """The independent coins as a value."""

    def draw(clients: Sequence[ClientInfo], round: int, seed: int) -> Cohort:
        chance = max(config.share, 1 / len(clients))
        return names_at(clients, np.flatnonzero(np.random.default_rng(seed).random(len(clients)) < chance))

    return Selection(draw=draw, share=config.share, may_be_empty=True)
