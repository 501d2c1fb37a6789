"""Ask each client once in an epoch, in a round that is drawn for it at random.

An epoch has about 1 / share rounds. Each client's round is drawn apart from the others', so cohorts differ in
size and one may be empty; nobody is asked twice in an epoch. This is random allocation, for which there is an
account of its own (arXiv 2602.17284): `poisson` spends less or more, depending on the noise, and leaves some
clients out for long.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from shepherd.config import PositiveShare, Table
from shepherd.core import ClientInfo, Cohort, Selection, Shuffled, names_at
from shepherd.errors import SettingsError

MIN_SHARE = 1e-6


class Config(Table):
    share: PositiveShare = 1.0
    """Share of the clients that a round asks on average; the nearest share that is 1 over a whole number."""


def build(config: Config) -> Selection:
    """Build the draw of a round for each client, once in each epoch.

    Raises:
        SettingsError: an epoch would be longer than any run.
    """
    if config.share < MIN_SHARE:
        raise SettingsError(
            f"selection.share = {config.share:g} makes an epoch of more than {1 / MIN_SHARE:,.0f} rounds, and"
            " each client is asked once in it; raise it"
        )
    rounds = max(1, round(1 / config.share))

    def draw(clients: Sequence[ClientInfo], round: int, seed: int) -> Cohort:
        own = np.random.default_rng(seed).integers(rounds, size=len(clients))
        return names_at(clients, np.flatnonzero(own == round % rounds))

    return Selection(
        draw=draw,
        share=1 / rounds,
        may_be_empty=True,
        sampling=lambda count: Shuffled(steps=rounds),
        together=rounds,
        by_list=True,
    )
