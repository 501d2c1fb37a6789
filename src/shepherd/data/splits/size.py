"""Deal the examples out at random, in parts of unequal size."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from shepherd.config import NonNegativeFloat, PositiveInt, Table
from shepherd.data.dealing import numbered, partitioned, require_enough, shuffled
from shepherd.data.examples import Example
from shepherd.data.split import Parts, Split


class Config(Table):
    clients: PositiveInt = 10
    """Number of clients."""
    size_exponent: NonNegativeFloat = 1.0
    """Client k holds a share proportional to (k + 1) ** size_exponent; 0 is equal parts."""


def build(config: Config) -> Split:
    """The unequal deal as a value."""

    def deal(examples: Sequence[Example], seed: int) -> Parts:
        from flwr_datasets.partitioner import SizePartitioner

        require_enough(examples, config.clients)
        sizes = sizes_for(len(examples), config.clients, config.size_exponent)
        return numbered(partitioned(SizePartitioner(sizes), shuffled(len(examples), seed)), config.clients)

    return Split(deal=deal)


def sizes_for(examples: int, clients: int, exponent: float) -> list[int]:
    """Client k's share of the examples is proportional to (k + 1) ** exponent; each gets at least one.

    >>> sizes_for(12, 3, 1.0)
    [2, 4, 6]
    """
    weights = np.linspace(1 / clients, 1, clients) ** exponent
    exact = 1 + (examples - clients) * weights / weights.sum()
    ideal = examples * weights / weights.sum()
    exact = ideal if ideal.min() >= 1 else exact
    sizes = np.floor(exact).astype(np.int64)
    missing = np.argsort(sizes - exact, kind="stable")[: examples - sizes.sum()]  # largest remainders
    sizes[missing] += 1
    return [int(size) for size in sizes]
