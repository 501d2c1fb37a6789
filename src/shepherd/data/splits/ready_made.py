"""Take a folder with one file a client as it is."""

from __future__ import annotations

from collections.abc import Sequence

from shepherd.config import Table
from shepherd.data.dealing import by_client
from shepherd.data.examples import Example
from shepherd.data.split import Parts, Split


class Config(Table):
    """There is nothing to set."""


def build(config: Config) -> Split:
    """The folder's own clients as a value."""

    def deal(examples: Sequence[Example], seed: int) -> Parts:
        return by_client(examples, "ready-made", "a folder with one file a client")

    return Split(deal=deal, by_file=True)
