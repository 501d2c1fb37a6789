"""Inner products between the updates of a round: how close they are to each other, as a Gram matrix (K, K).

Distances, norms, cosines and weighted means of K updates all follow from it. There are three spaces:

- "factors": an update is the vector of the changes dA and dB. Two factors that look harmless one by one can
  have a harmful product (arXiv 2601.00566), which this space does not see.
- "product": it is the change of the weights, dW = dB (A + dA) + B dA for each matrix. Its inner products need
  no matrix of (out, in): with L_k = [dB_k, B] and R_k = [A + dA_k; dA_k], dW_k = L_k R_k and

      <dW_i, dW_j>  =  trace((L_i^T L_j)(R_j R_i^T)),    in O((out + in) (K r)^2) for the whole cohort

  so it is the same for all factors of one product. What it does not see are factors that are turned, with the
  product as it was: (B R, R^-1 A). They harm a mean of factors.
- "both": the sum of the two, each divided by its median squared norm. Updates are close in it only if they
  are close in both.

The unit of a space decides how much it counts in "both", so it has to be of updates that a rule trusts:
attackers who own the median can make it so long that the space no longer counts. A rule gives the share that
each update has in that median, the same that it has in what the rule itself stands.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
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


def gram(
    space: Space,
    adapter: Adapter,
    changes: Sequence[Change],
    rank: int | None = None,
    shares: Sequence[float] | None = None,
) -> Matrix:
    """The inner products of changes, (K, K), in float64.

    Args:
        adapter: the broadcast, from which the clients moved.
        changes: the change of each client, all of the same names and shapes.
        rank: rank of every matrix's factors, if some tensors stack experts; None if none does.
        shares: how much each change counts in the median that is the unit of a space, (K,), at least 0 and
            not all 0; the default is the same for each. Only "both" needs a unit.
    """
    parts = [inner(adapter, changes, rank) for inner in SPACES[space]]
    if len(parts) == 1:
        return parts[0]
    total = np.zeros_like(parts[0])
    for part in parts:
        total += part / max(median(np.diag(part), shares), TINY)
    return total


def median(values: Matrix, shares: Sequence[float] | None = None) -> float:
    """The smallest value that values of at least half of all shares do not exceed.

    Args:
        values: (K,).
        shares: how much each counts, (K,), at least 0 and not all 0; the default is the same for each.

    >>> median(np.array([5.0, 1.0, 9.0])), median(np.array([5.0, 1.0, 9.0]), [0.1, 0.0, 0.9])
    (5.0, 9.0)
    """
    weights = np.ones(len(values)) if shares is None else np.asarray(shares, np.float64)
    return float(np.quantile(values, 0.5, method="inverted_cdf", weights=weights))


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


def _in_factors(adapter: Adapter, changes: Sequence[Change], rank: int | None) -> Matrix:
    return of_factors(changes)


SPACES: Mapping[Space, tuple[Callable[[Adapter, Sequence[Change], int | None], Matrix], ...]] = {
    "factors": (_in_factors,),
    "product": (of_products,),
    "both": (_in_factors, of_products),
}
"""The inner products whose sum, each in its unit, a space has."""


def reads_products(space: Space) -> bool:
    """Whether inner products in this space are of products B A, too."""
    return of_products in SPACES[space]
