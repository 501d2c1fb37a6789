"""Deal the examples out at random, in equal parts."""

from __future__ import annotations

from collections.abc import Sequence

from shepherd.config import PositiveInt, Table
from shepherd.data.dealing import numbered, partitioned, require_enough, shuffled
from shepherd.data.examples import Example
from shepherd.data.split import Parts, Split


class Config(Table):
    clients: PositiveInt = 10
    """Number of clients."""


def build(config: Config) -> Split:
    """The random deal as a value."""

    def deal(examples: Sequence[Example], seed: int) -> Parts:
        from flwr_datasets.partitioner import IidPartitioner

        require_enough(examples, config.clients)
        parts = partitioned(IidPartitioner(config.clients), shuffled(len(examples), seed))
        return numbered(parts, config.clients)

    return Split(deal=deal)
