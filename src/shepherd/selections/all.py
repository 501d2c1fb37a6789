"""Ask every client in every round."""

from __future__ import annotations

from collections.abc import Sequence

from shepherd.config import Table
from shepherd.core import ClientInfo, Cohort, Selection


class Config(Table):
    """There is nothing to set."""


def build(config: Config) -> Selection:
    """The whole federation as a value."""

    def draw(clients: Sequence[ClientInfo], round: int, seed: int) -> Cohort:
        return tuple(client.name for client in clients)

    return Selection(draw=draw)
