"""Deal each category out in shares drawn from a Dirichlet distribution (Hsu et al., arXiv 1909.06335)."""

from __future__ import annotations

from collections.abc import Sequence

from shepherd.config import PositiveFloat, PositiveInt, Table
from shepherd.core import seed_for
from shepherd.data.dealing import labels, numbered, partitioned, require_enough
from shepherd.data.examples import Example
from shepherd.data.split import Parts, Split
from shepherd.errors import DataError


class Config(Table):
    clients: PositiveInt = 10
    """Number of clients."""
    alpha: PositiveFloat = 0.5
    """Concentration of the distribution: small is unequal."""
    field: str = ""
    """Field of a row that the split goes by; "" is the category."""


def build(config: Config) -> Split:
    """The Dirichlet draw as a value."""

    def deal(examples: Sequence[Example], seed: int) -> Parts:
        from flwr_datasets.partitioner import DirichletPartitioner

        require_enough(examples, config.clients)
        partitioner = DirichletPartitioner(
            num_partitions=config.clients,
            partition_by="label",
            alpha=float(config.alpha),
            min_partition_size=1,
            seed=seed_for(seed, "dirichlet"),
        )
        found = labels(examples, config.field, "dirichlet")
        try:
            return numbered(partitioned(partitioner, range(len(examples)), found), config.clients)
        except ValueError as error:  # after its 11 draws
            raise DataError(
                f"a Dirichlet split with alpha {config.alpha:g} left some of the {config.clients} clients"
                " empty in every one of 11 draws; raise split.alpha or lower split.clients"
            ) from error

    return Split(deal=deal, label_field=config.field)
