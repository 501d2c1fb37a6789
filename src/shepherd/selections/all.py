"""Ask every client in every round."""

from __future__ import annotations

from collections.abc import Sequence

from shepherd.config import Table
from shepherd.core import ClientInfo, Cohort, Selection, Turns


class Config(Table):
    """This selection has no keys."""


def build(config: Config) -> Selection:
    """Build the selection of all clients."""

    def draw(clients: Sequence[ClientInfo], round: int, seed: int) -> Cohort:
        return tuple(client.name for client in clients)

    return Selection(draw=draw, sampling=lambda count: Turns(every=1))
