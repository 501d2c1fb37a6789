"""Sort the examples by category, cut them into shards and deal these out (FedIT, arXiv 2305.05644)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from shepherd.config import PositiveInt, Table
from shepherd.core import seed_for
from shepherd.data.dealing import labels, numbered, partitioned, require_enough, shuffled
from shepherd.data.examples import Example
from shepherd.data.split import Parts, Split
from shepherd.errors import DataError


class Config(Table):
    clients: PositiveInt = 10
    """Number of clients."""
    shards_per_client: PositiveInt = 2
    """How many runs of one category each client holds."""
    field: str = ""
    """Field of a row that the split goes by; "" is the category."""


def build(config: Config) -> Split:
    """The deal of sorted shards as a value."""

    def deal(examples: Sequence[Example], seed: int) -> Parts:
        require_enough(examples, config.clients)
        return numbered(_shards(examples, config, seed), config.clients)

    return Split(deal=deal, label_field=config.field)


def _shards(examples: Sequence[Example], config: Config, seed: int) -> list[list[int]]:
    """The partitioner cuts shards of one size and loses what remains.

    So the cut is made as even as it can be, the last example of each longer shard is laid aside, and it then
    joins its shard.
    """
    from flwr_datasets.partitioner import ShardPartitioner

    count = config.clients * config.shards_per_client
    if count > len(examples):
        raise DataError(
            f"{config.clients} clients with {config.shards_per_client} shards each are {count} shards of"
            f" only {len(examples)} examples; lower split.clients or split.shards_per_client"
        )
    found = labels(examples, config.field, "shards")
    order = sorted(shuffled(len(examples), seed), key=lambda index: found[index])
    shards = np.array_split(np.array(order), count)
    size = len(examples) // count
    partitioner = ShardPartitioner(
        num_partitions=config.clients,
        partition_by="label",
        num_shards_per_partition=config.shards_per_client,
        seed=seed_for(seed, "shards"),
    )
    parts = partitioned(partitioner, [int(i) for shard in shards for i in shard[:size]], range(size * count))
    extra = {int(shard[0]): int(shard[size]) for shard in shards if len(shard) > size}
    return [[*part, *(extra[index] for index in part if index in extra)] for part in parts]
