"""Ask the next clients in order, and after the last the first: all are asked before one is asked again."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from shepherd.config import PositiveShare, Table
from shepherd.core import ClientInfo, Cohort, Selection, names_at, share_of


class Config(Table):
    share: PositiveShare = 1.0
    """Share of the clients that each round asks; at least one client."""


def build(config: Config) -> Selection:
    """The turns as a value; nothing is random."""

    def draw(clients: Sequence[ClientInfo], round: int, seed: int) -> Cohort:
        number = share_of(len(clients), config.share)
        return names_at(clients, (round * number + np.arange(number)) % len(clients))

    return Selection(draw=draw, share=config.share)
