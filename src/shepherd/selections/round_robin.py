"""Ask the clients in turn: each is asked once before any is asked again."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from shepherd.config import PositiveShare, Table
from shepherd.core import ClientInfo, Cohort, Sampling, Selection, Turns, names_at, share_of


class Config(Table):
    share: PositiveShare = 1.0
    """Share of the clients that each round asks; at least one client."""


def build(config: Config) -> Selection:
    """Build the selection by turns, which is not random."""

    def draw(clients: Sequence[ClientInfo], round: int, seed: int) -> Cohort:
        number = share_of(len(clients), config.share)
        return names_at(clients, (round * number + np.arange(number)) % len(clients))

    def sampling(count: int) -> Sampling:
        return Turns(every=count // share_of(count, config.share))

    return Selection(draw=draw, share=config.share, sampling=sampling, by_list=True)
