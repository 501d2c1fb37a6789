"""Exact averaging of products: what the trained ranks cannot hold is kept in side ranks (FedEx-LoRA).

With A, B the new trained factors and A_s, B_s the side ranks, which no client trains,

    B A + B_s' A_s'  =  sum_k p_k B_k A_k + B_s A_s,    A = sum_k p_k A_k,  B = sum_k p_k B_k    (FedEx-LoRA)

so what goes to the side is the covariance sum_k p_k (B_k - B)(A_k - A), of rank (K - 1) r a round. Singhal et
al., arXiv 2410.09432. With `means = false` the trained ranks are the largest singular triplets of
sum_k p_k B_k A_k instead (FedMomentum, arXiv 2603.08014, which uses a randomised SVD; this one is exact).

The papers add the rest to the base's weights, which a base in 4 bits does not allow, and which every client
has to be sent; here it is `side_rank` ranks of the adapter. As long as the rest has no higher rank, nothing
is lost; above that, the largest singular triplets are kept. A client of a smaller rank trains the first
ranks and has the others as they were sent.
"""

from __future__ import annotations

from shepherd.aggregations.product import Split, factors
from shepherd.config import PositiveInt, Table
from shepherd.core import Aggregation, product
from shepherd.core.local_factors import Module, of_products
from shepherd.core.product import Factors


class Config(Table):
    side_rank: PositiveInt = 32
    """Ranks in addition to the trained ones; each costs as much memory and traffic as a trained one."""
    means: bool = True
    """Whether the trained factors are the means of A and B; else the largest part of the mean product."""
    split: Split = "aligned"
    """With means = false, how the product is divided into A and B, as in the aggregation "product"."""


def build(config: Config) -> Aggregation:
    """Build the exact mean with side ranks."""
    after = _means if config.means else _largest

    return of_products(lambda module: after(module, config), side_rank=config.side_rank)


def _means(module: Module, config: Config) -> Factors:
    """The means of A and B, and their covariance added to the side."""
    parts = [product.padded(part, module.rank) for part in module.local]
    rest = product.covariance(parts, module.weights)
    return _with_side(product.mean(parts, module.weights), rest, module, config)


def _largest(module: Module, config: Config) -> Factors:
    """The largest singular triplets of the mean product, and the others added to the side."""
    found = product.spectrum(product.stacked(module.local, module.weights))
    trained = factors(found.first(module.rank), module.near(), config.split)
    return _with_side(trained, found.after(module.rank).factors, module, config)


def _with_side(trained: Factors, rest: Factors, module: Module, config: Config) -> Factors:
    side = product.compressed(product.joined(module.side, rest), config.side_rank)
    return product.joined(trained, side)
