"""Inner products between the updates of a round: how close they are to each other, as a Gram matrix (K, K).

Distances, norms, cosines and weighted means of K updates all follow from it. There are three spaces:

- "factors": an update is the vector of the changes dA and dB. Two factors that look harmless one by one can
  have a harmful product (arXiv 2601.00566), which this space does not see.
- "product": it is the change of the weights, dW = dB (A + dA) + B dA for each matrix. Its inner products need
  no matrix of (out, in): with L_k = [dB_k, B] and R_k = [A + dA_k; dA_k], dW_k = L_k R_k and

      <dW_i, dW_j>  =  trace((L_i^T L_j)(R_j R_i^T)),    in O((out + in) (K r)^2) for the whole cohort

  so it is the same for all factors of one product. What it does not see are factors that are turned, with the
  product as it was: (B R, R^-1 A). They harm whoever averages factors.
- "both": the sum of the two, each divided by its median squared norm. Updates are close in it only if they
  are close in both.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from shepherd.core.adapter import Adapter
from shepherd.core.experts import experts_of, split_a, split_b
from shepherd.core.factor_gap import Pair, pairs

Space = Literal["both", "product", "factors"]
Change = Mapping[str, NDArray[Any]]
Matrix = NDArray[np.float64]
MAX_BLOCK_BYTES = 256 * 2**20
"""Most bytes of one block of inner products between the ranks of different updates."""
TINY = sys.float_info.min**0.5
"""Stands for a norm or a distance of zero in a divisor; its square is above zero, too."""


def gram(space: Space, adapter: Adapter, changes: Sequence[Change], rank: int | None = None) -> Matrix:
    """The inner products of changes, (K, K), in float64.

    Args:
        adapter: the broadcast, from which the clients moved.
        changes: the change of each client, all of the same names and shapes.
        rank: rank of every matrix's factors, if some tensors stack experts; None if none does.
    """
    match space:
        case "factors":
            return of_factors(changes)
        case "product":
            return of_products(adapter, changes, rank)
        case "both":
            return _scaled(of_factors(changes)) + _scaled(of_products(adapter, changes, rank))


def of_factors(changes: Sequence[Change]) -> Matrix:
    """The inner products of the changes as vectors of all their numbers, (K, K).

    >>> of_factors([{"a": np.array([1.0, 2.0])}, {"a": np.array([0.0, 1.0])}]).tolist()
    [[5.0, 2.0], [2.0, 1.0]]
    """
    found = np.zeros((len(changes), len(changes)))
    for name in changes[0]:
        rows = np.stack([change[name].ravel() for change in changes]).astype(np.float64)  # (K, numbers)
        found += rows @ rows.T
    return found


def of_products(adapter: Adapter, changes: Sequence[Change], rank: int | None = None) -> Matrix:
    """The inner products of the changes of all products B A, and of tensors that are no factor, (K, K).

    A factor that the changes do not hold did not move.
    """
    matrices = pairs(adapter)
    factors = {name for pair in matrices for name in pair}
    found = np.zeros((len(changes), len(changes)))
    for pair in matrices:
        if pair.a in changes[0] or pair.b in changes[0]:
            found += _of_matrix(pair, adapter, changes, experts_of(adapter[pair.a], rank))
    if others := changes[0].keys() - factors:
        found += of_factors([{name: change[name] for name in others} for change in changes])
    return found


def squared_distances(gram: Matrix) -> Matrix:
    """The squared distance of each two updates, (K, K).

    >>> squared_distances(np.array([[5.0, 2.0], [2.0, 1.0]])).tolist()
    [[0.0, 2.0], [2.0, 0.0]]
    """
    squares = np.diag(gram)
    distances: Matrix = np.maximum(0.0, squares[:, None] + squares - 2 * gram)
    return distances


def norms(gram: Matrix) -> Matrix:
    """The norm of each update, (K,)."""
    lengths: Matrix = np.sqrt(np.maximum(0.0, np.diag(gram)))
    return lengths


def _of_matrix(pair: Pair, adapter: Adapter, changes: Sequence[Change], experts: int) -> Matrix:
    """The part of one adapted parameter, over its experts' matrices."""
    whole_a, whole_b = split_a(adapter[pair.a], experts), split_b(adapter[pair.b], experts)
    found = np.zeros((len(changes), len(changes)))
    for expert in range(experts):
        a, b = whole_a[expert], whole_b[expert]  # (r, in), (out, r)
        left, right = [], []
        for change in changes:
            d_a = split_a(change[pair.a], experts)[expert] if pair.a in change else np.zeros_like(a)
            d_b = split_b(change[pair.b], experts)[expert] if pair.b in change else np.zeros_like(b)
            left.append(np.concatenate([d_b, b], axis=1).T)
            right.append(np.concatenate([a + d_a, d_a]))
        found += _of_stacks(np.stack(left), np.stack(right))
    return found


def _of_stacks(left: Matrix, right: Matrix) -> Matrix:
    """trace((L_i^T L_j)(R_j R_i^T)) of each two, from L^T (K, q, out) and R (K, q, in), a block at a time."""
    count, ranks = left.shape[:2]
    flat_left, flat_right = left.reshape(count * ranks, -1), right.reshape(count * ranks, -1)
    block = max(1, MAX_BLOCK_BYTES // (16 * ranks * ranks * count))
    rows = []
    for first in range(0, count, block):
        some = slice(first * ranks, (first + block) * ranks)
        both = (flat_left[some] @ flat_left.T) * (flat_right[some] @ flat_right.T)
        rows.append(both.reshape(-1, ranks, count, ranks).sum(axis=(1, 3)))
    return np.concatenate(rows)


def _scaled(gram: Matrix) -> Matrix:
    """The inner products in a unit that makes the median squared norm 1."""
    scaled: Matrix = gram / max(float(np.median(np.diag(gram))), TINY)
    return scaled
