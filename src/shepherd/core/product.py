"""The weighted sum of clients' products B A, factorised without ever forming a matrix (out, in).

With weights p_k, scales s_k and the factors A_k (r_k, in) and B_k (out, r_k) of client k, the stacks

    B = [p_1 s_1 B_1, ..., p_K s_K B_K]  (out, R),    A = [A_1; ...; A_K]  (R, in),    R = sum_k r_k

have the product B A = sum_k p_k s_k B_k A_k. From B = Q_B R_B and A^T = Q_A R_A, and the SVD
U S V^T of the small matrix R_B R_A^T, its singular triplets are Q_B U, S and Q_A V, at a cost of
O((out + in) R^2). Everything is float64.

A product has many pairs of factors, (B M, M^-1 A) for every invertible M, and a local optimiser moves them
differently: Adam takes steps of one size whatever the size of A, and the gradient of B is proportional to A.
A balanced split, B = U S^1/2 and A = S^1/2 V^T, shrinks A while the product is still small. `aligned` and
`ordered` keep the scale of A.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from shepherd.errors import FederationError

Matrix = NDArray[np.float64]
Weight = float | NDArray[np.float64]
FLOOR = 0.25
"""Smallest singular value of an aligned A, as a share of its scale; B grows by at most the inverse of it."""
FRESH_SCALE = 1 / math.sqrt(3)
"""Norm of a row of a fresh A, whose entries are uniform in (-1/sqrt(in), 1/sqrt(in))."""
EPSILON = float(np.finfo(np.float64).eps)


class Factors(NamedTuple):
    """The factors of one matrix: B (out, r) and A (r, in)."""

    b: Matrix
    a: Matrix

    def first(self, rank: int) -> Factors:
        """The first ranks alone."""
        return Factors(self.b[:, :rank], self.a[:rank])


class Spectrum(NamedTuple):
    """Singular triplets in descending order: left (out, q), values (q,), right (q, in)."""

    left: Matrix
    values: Matrix
    right: Matrix

    def first(self, rank: int) -> Spectrum:
        """The largest triplets, at most this many."""
        return Spectrum(self.left[:, :rank], self.values[:rank], self.right[:rank])

    def after(self, rank: int) -> Spectrum:
        """All triplets but the largest ones."""
        return Spectrum(self.left[:, rank:], self.values[rank:], self.right[rank:])

    @property
    def factors(self) -> Factors:
        """B = U S and A = V^T."""
        return Factors(self.left * self.values, self.right)


class Near(NamedTuple):
    """What a split stays close to."""

    a: Matrix
    """The mean of the clients' A, (r, in)."""
    scale: float
    """Root mean square of the norms of the rows of the broadcast's A."""
    ends: tuple[int, ...] = ()
    """The ranks of clients that are sent their own ranks alone: the first `end` ranks are to be the best
    approximation of that rank."""


def svd(matrices: Matrix, *, full_matrices: bool = True) -> tuple[Matrix, Matrix, Matrix]:
    """The singular value decomposition U, S, V^T of each matrix (..., m, n).

    Raises:
        FederationError: it does not converge, as where the factors are so large that products overflow.
    """
    try:
        return np.linalg.svd(matrices, full_matrices=full_matrices)
    except np.linalg.LinAlgError as error:
        raise FederationError(
            "the singular values of a product of factors cannot be computed, since its numbers are too large;"
            " clip the updates, or lower the learning rate or the step of the aggregation, and resume from"
            " the round before"
        ) from error


def stacked(
    parts: Sequence[Factors],
    weights: Sequence[Weight],
    scales: Sequence[float] | None = None,
    scale: float = 1.0,
) -> Factors:
    """Stack factors so that the product of the stacks is the weighted sum of their products.

    Args:
        weights: weight of each part, or of each of its ranks.
        scales: what each part's product is multiplied by in its model, such as alpha / r_k; 1 by default.
        scale: what the result's product is multiplied by in its model.

    >>> one = Factors(np.array([[2.0], [0.0]]), np.array([[1.0, 3.0]]))
    >>> two = Factors(np.array([[0.0], [1.0]]), np.array([[4.0, 4.0]]))
    >>> both = stacked([one, two], [0.5, 0.25], scales=[2.0, 4.0], scale=2.0)
    >>> (both.b @ both.a).tolist()
    [[1.0, 3.0], [2.0, 2.0]]
    """
    each = scales or [1.0] * len(parts)
    b = [part.b * (weight * (own / scale)) for part, weight, own in zip(parts, weights, each, strict=True)]
    return Factors(np.concatenate(b, axis=1), np.concatenate([part.a for part in parts]))


def spectrum(stack: Factors, rank: int | None = None) -> Spectrum:
    """The singular triplets of B A that rounding does not explain; the largest ones, if `rank` is given.

    The stack may have more ranks than B has rows or A has columns.
    """
    left, upper = np.linalg.qr(stack.b)  # (out, n), (n, R), n = min(out, R)
    right, lower = np.linalg.qr(stack.a.T)
    u, values, vt = svd(upper @ lower.T)
    size = float(np.linalg.norm(stack.b, axis=0) @ np.linalg.norm(stack.a, axis=1))
    kept = int((values > EPSILON * max(*stack.b.shape, *stack.a.shape) * size).sum())
    kept = kept if rank is None else min(kept, rank)
    return Spectrum(left @ u[:, :kept], values[:kept], vt[:kept] @ right.T)


def energy_rank(values: Matrix, share: float) -> int:
    """Fewest of the largest singular values that hold this share of the sum of squares.

    >>> energy_rank(np.array([2.0, 1.0, 1.0]), 0.7), energy_rank(np.array([2.0, 1.0, 1.0]), 1.0)
    (2, 3)
    """
    energy = np.cumsum(np.square(values))
    if not len(energy):
        return 0
    return min(len(energy), int(np.searchsorted(energy, share * energy[-1] * (1 - 1e-12))) + 1)


def energy_kept(values: Matrix, rank: int) -> float:
    """Share of the sum of squares in the largest singular values; 1 for a product of zero."""
    whole = float(values @ values)
    return float(values[:rank] @ values[:rank]) / whole if whole else 1.0


def covariance(parts: Sequence[Factors], weights: Sequence[float]) -> Factors:
    """What averaging A and B apart leaves out: sum p_k (B_k - mean B)(A_k - mean A), as a stack.

    With weights that sum to 1 it equals sum p_k B_k A_k - (mean B)(mean A). Its rank is at most K - 1 times
    that of a part; all parts have the same rank.
    """
    mean_b, mean_a = mean(parts, weights)
    return stacked([Factors(part.b - mean_b, part.a - mean_a) for part in parts], weights)


def joined(one: Factors, two: Factors) -> Factors:
    """The ranks of two pairs of factors, one after the other; the products add up."""
    return Factors(np.concatenate([one.b, two.b], axis=1), np.concatenate([one.a, two.a]))


def compressed(stack: Factors, rank: int) -> Factors:
    """Factors of exactly this rank: the best approximation of a stack's product, and then zeros."""
    return padded(split_evenly(spectrum(stack, rank)), rank)


def mean(parts: Sequence[Factors], weights: Sequence[float]) -> Factors:
    """The weighted means of B and of A, which are not the factors of the mean product."""
    b, a = np.zeros_like(parts[0].b), np.zeros_like(parts[0].a)
    for part, weight in zip(parts, weights, strict=True):
        b += weight * part.b
        a += weight * part.a
    return Factors(b, a)


def squared_norm(part: Factors) -> float:
    """||BA||_F^2 = trace((B^T B)(A A^T)), in O((out + in) r^2)."""
    return max(0.0, float(np.vdot(part.b.T @ part.b, part.a @ part.a.T)))


def padded(part: Factors, rank: int) -> Factors:
    """The factors with ranks of zeros after their own, up to `rank`; the product is the same."""
    more = rank - len(part.a)
    return Factors(np.pad(part.b, ((0, 0), (0, more))), np.pad(part.a, ((0, more), (0, 0))))


def in_order(part: Factors) -> Factors:
    """The same product with its ranks in descending order of their singular values."""
    return padded(spectrum(part).factors, len(part.a))


def rank_weights(ranks: Sequence[int], weights: Sequence[float]) -> list[Matrix]:
    """The weight of each rank of each client, normalised over the clients that have this rank.

    >>> [each.tolist() for each in rank_weights([1, 2], [0.5, 0.5])]
    [[0.5], [0.5, 1.0]]
    """
    having = [sum(w for rank, w in zip(ranks, weights, strict=True) if rank > j) for j in range(max(ranks))]
    return [w / np.array(having[:rank]) for rank, w in zip(ranks, weights, strict=True)]


def scale_of(a: Matrix) -> float:
    """Root mean square of the norms of the rows of A; that of a fresh A, if A is zero."""
    return float(np.linalg.norm(a)) / math.sqrt(len(a)) or FRESH_SCALE


def aligned(found: Spectrum, near: Near) -> Factors:
    """Factors of the product whose A is as close to the clients' mean A as its conditioning allows.

    Let the rows of D be the product's right singular vectors, and after them, if there are fewer than r,
    directions of the mean A. Every A = M D with an invertible M has a B with the right product. The closest
    to the mean A has M = (mean A) D^T, and of those whose singular values are at least `FLOOR` times the
    scale it is this M with its smaller singular values raised (Mirsky). So A is the mean A itself where that
    spans the product, as where A is frozen, and B is not unbounded where it does not.

    Ranks between two of `near.ends` are mixed with each other alone.
    """
    rows = _directions(found.right, near.a)  # (m, in)
    rank = len(near.a)
    loaded = np.zeros((len(found.left), len(rows)))
    loaded[:, : len(found.values)] = found.left * found.values
    a, b = near.a.copy(), np.zeros((len(loaded), rank))
    for start, end in pairwise(sorted({0, *near.ends, rank})):
        own = rows[start:end]
        if not len(own):  # more ranks than A has columns: they keep their A, and B is zero
            continue
        x, sizes, y = svd(near.a[start:end] @ own.T, full_matrices=False)
        sizes = np.maximum(sizes, FLOOR * near.scale)
        a[start:end] = (x * sizes) @ y @ own
        b[:, start:end] = (loaded[:, start:end] @ y.T / sizes) @ x.T
    return Factors(b, a)


def ordered(found: Spectrum, near: Near) -> Factors:
    """Factors in the order of the singular values, with rows of A of the scale that A had.

    The first ranks are the best approximation of that rank, for clients that train these alone. Ranks that
    the product does not use have B = 0 and directions of the mean A, so that they can be trained.
    """
    rows = _directions(found.right, near.a)
    b, a = np.zeros((len(found.left), len(near.a))), near.a.copy()
    signs = np.where(np.einsum("ri,ri->r", near.a[: len(rows)], rows) < 0, -near.scale, near.scale)
    a[: len(rows)] = rows * signs[:, None]
    used = len(found.values)
    b[:, :used] = found.left * (found.values / signs[:used])
    return Factors(b, a)


def balanced(found: Spectrum, near: Near) -> Factors:
    """Factors of equal norms, B = U S^1/2 and A = S^1/2 V^T; ranks without use as those of `ordered`."""
    b, a = ordered(found, near)
    used = len(found.values)
    sizes = np.sqrt(found.values) / near.scale
    b[:, :used] /= sizes
    a[:used] *= sizes[:, None]
    return Factors(b, a)


def split_evenly(found: Spectrum) -> Factors:
    """B = U S^1/2 and A = S^1/2 V^T."""
    roots = np.sqrt(found.values)
    return Factors(found.left * roots, roots[:, None] * found.right)


def _directions(right: Matrix, a: Matrix) -> Matrix:
    """Rows of `right`, then orthonormal directions of A outside them, up to the rank of A; (m, in)."""
    wanted = min(a.shape) - len(right)
    if wanted <= 0:
        return right
    rest = a - a @ right.T @ right
    _, sizes, vt = svd(rest - rest @ right.T @ right, full_matrices=False)
    live = sizes > EPSILON * max(a.shape) * np.linalg.norm(a)
    return np.concatenate([right, vt[live][:wanted]])
