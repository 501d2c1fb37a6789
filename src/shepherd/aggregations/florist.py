"""The weighted sum of the clients' products B A, cut to the rank that holds a share of its energy (FLoRIST).

    W  =  sum_k p_k B_k A_k,    rank p = the fewest with  sum_{i <= p} S_i^2  >=  energy sum_i S_i^2

with the singular values S of W, from the stacks of the factors; p is chosen for each matrix, and is at most
the adapter's rank. Ramesh et al., arXiv 2506.09199. In the paper clients receive the p ranks alone; here A
keeps the adapter's rank, with directions of the mean A in ranks that the product does not use, so that the
next visit can use them. The traffic is that of the adapter's rank.
"""

from __future__ import annotations

from shepherd.aggregations.product import Split, factors
from shepherd.config import PositiveShare, Table
from shepherd.core import Aggregation, product
from shepherd.core.local_factors import Module, of_products
from shepherd.core.product import Factors


class Config(Table):
    energy: PositiveShare = 0.95
    """Share of the sum of squared singular values that is kept, within the adapter's rank."""
    split: Split = "aligned"
    """How the product is divided into A and B, as in the aggregation "product"."""


def build(config: Config) -> Aggregation:
    """Build the mean of the products, cut by energy."""

    def after(module: Module) -> Factors:
        found = product.spectrum(product.stacked(module.local, module.weights))
        rank = min(module.rank, product.energy_rank(found.values, config.energy))
        return factors(found.first(rank), module.near(), config.split)

    return of_products(after)
