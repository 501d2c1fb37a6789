"""FedSVD: a plain step, and every few rounds new factors of the same product, with an orthonormal A.

    theta  <-  theta + eta delta;    then, every T rounds,    B A = U S V^T,    A  <-  V^T,    B  <-  U S

Made for `ffa_lora`, whose A would else keep its random start for ever: the new A has the directions that B
has learned. The product has at most as many singular values as the adapter has ranks, so nothing is cut and
the model stays the same, up to float32. The SVD is of (r, r), after a QR of each factor; no matrix of (out,
in) is formed. Lee et al., arXiv 2505.12805.

It is a server optimiser and not an aggregation, since it comes after the mean and after any noise: a
function of what was released costs no privacy, and under secure sums the server sees the mean alone. The
step is on the old factors, so any learning rate is right. There is no momentum: it would belong to the old
factors, and is refused. While B is still zero, A gets orthonormal rows that span the same space.

The next round sends A as well as B, as every broadcast does, and clients still send B alone.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from shepherd.config import PositiveFloat, PositiveInt, Table
from shepherd.core import Adapter, Context, ServerOptimiser, ServerState, product
from shepherd.core.experts import experts_of, joined_a, joined_b, split_a, split_b
from shepherd.core.factor_gap import pairs
from shepherd.server_optimisers import sgd

Matrix = NDArray[np.float64]


class Config(Table):
    learning_rate: PositiveFloat = 1.0
    """Step size along the aggregate; 1 is FedAvg."""
    every: PositiveInt = 1
    """Rounds from one factorisation to the next."""


def build(config: Config) -> ServerOptimiser:
    """Build the server optimiser."""

    def rebase(state: ServerState, context: Context) -> Adapter:
        return state.adapter if state.round % config.every else rebased(state.adapter, context.rank)

    step = sgd.build(sgd.Config(learning_rate=config.learning_rate))
    return ServerOptimiser(apply=step.apply, rebase=rebase)


def rebased(adapter: Adapter, rank: int | None = None) -> Adapter:
    """The same products, each as U S times an orthonormal V^T.

    Args:
        rank: rank of every matrix's factors, if some tensors stack experts; None if none does.
    """
    tensors: dict[str, NDArray[Any]] = dict(adapter)
    for pair in pairs(adapter):
        a, b = adapter[pair.a], adapter[pair.b]
        experts = experts_of(a, rank)
        stacks = zip(split_b(b, experts), split_a(a, experts), strict=True)
        new = [factorised(own_b, own_a) for own_b, own_a in stacks]
        tensors[pair.b] = joined_b(np.stack([own_b for own_b, _ in new]))
        tensors[pair.a] = joined_a(np.stack([own_a for _, own_a in new]))
    return Adapter(tensors)


def factorised(b: Matrix, a: Matrix) -> tuple[Matrix, Matrix]:
    """B (out, r) and A (r, in) -> U S and V^T of their product, in these shapes.

    Rows of V^T are orthonormal, the largest singular value first; where r is above `in`, the rest are zero.
    """
    rank = len(a)
    q_b, r_b = np.linalg.qr(b)  # (out, p), (p, r)
    q_a, r_a = np.linalg.qr(a.T)  # (in, q), (q, r)
    u, s, v = product.svd(r_b @ r_a.T)  # (p, p), (min(p, q),), (q, q)
    new_b, new_a = np.zeros((len(b), rank)), np.zeros((rank, a.shape[1]))
    new_b[:, : len(s)] = q_b @ (u[:, : len(s)] * s)
    new_a[: len(v)] = v @ q_a.T
    return new_b, new_a
