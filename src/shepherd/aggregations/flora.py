"""All products go to the side ranks, and the trained ranks start again in each round (FLoRA).

    B_s' A_s'  =  B_s A_s + sum_k p_k B_k A_k,    A' newly drawn, B' = 0

Wang et al., arXiv 2409.05976: clients receive the stack of all A_k and B_k, add its product to the base's
weights, and train a new adapter. Here the sum is kept in `side_rank` ranks of the adapter: nothing is lost as
long as its rank, which grows by that of the cohort in every round, is no higher; above that, the largest
singular triplets are kept. Clients may have different ranks.

The paper scales each client's product by alpha / r_k; in a run of this package one scale holds for all. In
the published code the branch for clients of equal ranks keeps the first client's factors alone; this file
follows the formula.
"""

from __future__ import annotations

import math

import numpy as np

from shepherd.config import PositiveInt, Table
from shepherd.core import Aggregation, product, seed_for
from shepherd.core.local_factors import Module, of_products
from shepherd.core.product import Factors


class Config(Table):
    side_rank: PositiveInt = 64
    """Ranks that hold the sum; each costs as much memory and traffic as a trained one."""


def build(config: Config) -> Aggregation:
    """Build the stack of all products."""

    def after(module: Module) -> Factors:
        whole = product.joined(module.side, product.stacked(module.local, module.weights))
        return product.joined(fresh(module), product.compressed(whole, config.side_rank))

    return of_products(after, side_rank=config.side_rank, restarts=True)


def fresh(module: Module) -> Factors:
    """New trained factors: A uniform in (-1/sqrt(in), 1/sqrt(in)), as PEFT draws it, and B zero.

    The run's seed and the round decide A.
    """
    bound = 1 / math.sqrt(module.broadcast.a.shape[1])
    draws = np.random.default_rng(seed_for(module.seed, module.round, "flora", module.pair.a))
    return Factors(np.zeros_like(module.broadcast.b), draws.uniform(-bound, bound, module.broadcast.a.shape))
