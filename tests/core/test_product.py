"""Product space against dense matrices."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shepherd.core import product
from shepherd.core.product import FLOOR, Factors, Near

SIZES = st.integers(1, 7)
RANKS = st.lists(st.integers(1, 5), min_size=1, max_size=5)
SEEDS = st.integers(0, 2**32)
SPLITS = [product.aligned, product.ordered, product.balanced]
CLOSE = {"rtol": 1e-9, "atol": 1e-9}


def part(rng, out, width, rank):
    return Factors(rng.normal(size=(out, rank)), rng.normal(size=(rank, width)))


def dense(of):
    return of.b @ of.a


def near(rng, rank, width, ends=()):
    a = rng.normal(size=(rank, width))
    return Near(a, product.scale_of(a), ends)


def parts_of(seed, out, width, ranks):
    rng = np.random.default_rng(seed)
    weights = rng.dirichlet(np.ones(len(ranks)))
    scales = rng.uniform(0.1, 4, len(ranks))
    return rng, [part(rng, out, width, rank) for rank in ranks], list(weights), list(scales)


def cut(matrix, rank):
    """The best approximation of this rank, by a dense SVD."""
    u, s, vt = np.linalg.svd(matrix)
    return (u[:, :rank] * s[:rank]) @ vt[:rank] if rank <= len(s) else matrix


@given(SIZES, SIZES, RANKS, SEEDS, st.floats(0.1, 10))
def test_the_stack_is_the_weighted_sum_of_scaled_products(out, width, ranks, seed, scale):
    _, parts, weights, scales = parts_of(seed, out, width, ranks)
    due = sum(p * s * dense(each) for p, s, each in zip(weights, scales, parts, strict=True))
    got = product.stacked(parts, weights, scales, scale)
    np.testing.assert_allclose(scale * dense(got), due, **CLOSE)


@given(SIZES, SIZES, RANKS, SEEDS)
def test_the_spectrum_is_the_dense_svd(out, width, ranks, seed):
    """Also where the stack has more ranks than the matrix has rows or columns."""
    _, parts, weights, _ = parts_of(seed, out, width, ranks)
    stack = product.stacked(parts, weights)
    found = product.spectrum(stack)
    values = np.linalg.svd(dense(stack), compute_uv=False)
    np.testing.assert_allclose(found.values, values[: len(found.values)], **CLOSE)
    np.testing.assert_allclose(values[len(found.values) :], 0, atol=1e-9)
    np.testing.assert_allclose(dense(found.factors), dense(stack), **CLOSE)
    for basis in (found.left.T, found.right):
        np.testing.assert_allclose(basis @ basis.T, np.eye(len(basis)), atol=1e-9)
    few = product.spectrum(stack, 1)
    np.testing.assert_allclose(dense(few.factors), dense(found.first(1).factors), **CLOSE)


def test_ranks_that_cancel_and_ranks_of_rounding_are_none():
    rng = np.random.default_rng(0)
    one = part(rng, 6, 5, 2)
    assert len(product.spectrum(product.stacked([one, one], [0.5, -0.5])).values) == 0
    assert len(product.spectrum(product.stacked([one, one, one], [0.2, 0.3, 0.5])).values) == 2
    sized = Factors(one.b * 1e9, one.a / 1e9)  # the same product
    assert len(product.spectrum(product.stacked([sized, one], [0.5, 0.5])).values) == 2


@given(SIZES, SIZES, RANKS, SEEDS, st.integers(1, 5), st.sampled_from(SPLITS))
def test_a_split_has_the_product_cut_to_its_rank(out, width, ranks, seed, rank, split):
    rng, parts, weights, _ = parts_of(seed, out, width, ranks)
    stack = product.stacked(parts, weights)
    found = product.spectrum(stack, rank)
    after = split(found, near(rng, rank, width))
    assert (after.b.shape, after.a.shape) == ((out, rank), (rank, width))
    np.testing.assert_allclose(dense(after), cut(dense(stack), rank), rtol=1e-7, atol=1e-8)


@given(st.integers(1, 4), st.integers(0, 4), SEEDS, st.sampled_from(SPLITS))
def test_ranks_without_use_stay_trainable(rank, used, seed, split):
    """A's rows stay independent, so every direction of B has a gradient; also of a product of zero."""
    rng = np.random.default_rng(seed)
    used = min(used, rank)
    low = part(rng, 6, 8, used)
    close = near(rng, rank, 8)
    after = split(product.spectrum(low, rank), close)
    np.testing.assert_allclose(dense(after), dense(low), **CLOSE)
    assert np.linalg.matrix_rank(after.a) == rank
    if split is not product.balanced:
        assert np.linalg.svd(after.a, compute_uv=False).min() >= FLOOR * close.scale * (1 - 1e-9)
    if split is not product.aligned:
        assert not after.b[:, used:].any()


def test_where_nothing_was_learned_an_aligned_a_is_the_mean_a():
    rng = np.random.default_rng(0)
    close = near(rng, 3, 40)
    after = product.aligned(product.spectrum(Factors(np.zeros((6, 3)), close.a), 3), close)
    np.testing.assert_allclose(after.a, close.a, **CLOSE)
    assert not after.b.any()


def test_where_a_is_shared_an_aligned_split_is_the_mean_of_b():
    """The mean of B is exact there, so it is what plain averaging gives."""
    rng = np.random.default_rng(1)
    close = near(rng, 3, 40)
    parts = [Factors(rng.normal(size=(10, 3)), close.a) for _ in range(4)]
    after = product.aligned(product.spectrum(product.stacked(parts, [0.25] * 4), 3), close)
    np.testing.assert_allclose(after.a, close.a, **CLOSE)
    np.testing.assert_allclose(after.b, np.mean([each.b for each in parts], axis=0), **CLOSE)


@given(SEEDS)
def test_no_a_with_the_product_is_closer_to_the_mean_a_than_the_aligned_one(seed):
    rng = np.random.default_rng(seed)
    found = product.spectrum(part(rng, 6, 12, 3), 3)
    close = near(rng, 3, 12)._replace(scale=0.0)  # no floor
    after = product.aligned(found, close)
    for _ in range(5):
        other = rng.normal(size=(3, 3)) @ found.right
        for share in (1.0, 1e-3):
            moved = after.a + share * (other - after.a)
            assert np.linalg.norm(moved - close.a) >= np.linalg.norm(after.a - close.a) - 1e-12


def test_an_aligned_b_is_bounded_where_the_mean_a_hardly_reaches_the_product():
    rows = np.eye(6)
    found = product.spectrum(Factors(np.ones((4, 1)), rows[:1]), 1)
    after = product.aligned(found, Near(1e-12 * rows[:1] + rows[1:2], 1.0))
    assert np.linalg.norm(after.b) <= 1 / FLOOR * np.linalg.norm(found.values) * (1 + 1e-9)
    np.testing.assert_allclose(dense(after), np.ones((4, 1)) * rows[:1], **CLOSE)


def test_an_ordered_split_is_the_best_of_every_rank_and_an_aligned_one_of_the_ranks_it_is_given():
    rng = np.random.default_rng(2)
    whole = part(rng, 9, 8, 5)
    found, close = product.spectrum(whole, 5), near(rng, 5, 8, ends=(2, 4))
    for rank in range(1, 6):
        np.testing.assert_allclose(
            dense(product.ordered(found, close).first(rank)), cut(dense(whole), rank), **CLOSE
        )
        np.testing.assert_allclose(
            dense(product.balanced(found, close).first(rank)), cut(dense(whole), rank), **CLOSE
        )
    for rank in (2, 4, 5):
        np.testing.assert_allclose(
            dense(product.aligned(found, close).first(rank)), cut(dense(whole), rank), **CLOSE
        )


def test_the_scale_of_a():
    rng = np.random.default_rng(3)
    found, close = product.spectrum(part(rng, 9, 8, 4), 4), near(rng, 4, 8)
    np.testing.assert_allclose(np.linalg.norm(product.ordered(found, close).a, axis=1), close.scale)
    b, a = product.balanced(found, close)
    np.testing.assert_allclose(np.linalg.norm(b, axis=0), np.linalg.norm(a, axis=1))
    assert product.scale_of(np.zeros((2, 3))) == 1 / math.sqrt(3)


@given(SIZES, SIZES, st.integers(1, 4), st.integers(1, 5), SEEDS)
def test_the_residual_of_the_means_is_the_covariance(out, width, rank, count, seed):
    _, parts, weights, _ = parts_of(seed, out, width, [rank] * count)
    rest = product.covariance(parts, weights)
    due = dense(product.stacked(parts, weights)) - dense(product.mean(parts, weights))
    np.testing.assert_allclose(dense(rest), due, **CLOSE)
    assert (product.spectrum(rest).values > 1e-9).sum() <= (count - 1) * rank


@given(SIZES, SIZES, RANKS, st.integers(1, 8), SEEDS)
def test_a_compressed_stack_has_exactly_its_rank_and_loses_nothing_below_it(out, width, ranks, rank, seed):
    _, parts, weights, _ = parts_of(seed, out, width, ranks)
    stack = product.stacked(parts, weights)
    small = product.compressed(stack, rank)
    assert small.a.shape == (rank, width)
    np.testing.assert_allclose(dense(small), cut(dense(stack), rank), rtol=1e-7, atol=1e-8)


@given(RANKS, SEEDS)
def test_rank_weights_of_each_rank_sum_to_one(ranks, seed):
    rng = np.random.default_rng(seed)
    weights = rng.dirichlet(np.ones(len(ranks)))
    each = product.rank_weights(ranks, list(weights))
    for rank in range(max(ranks)):
        assert sum(w[rank] for w in each if len(w) > rank) == pytest.approx(1)
    if len(set(ranks)) == 1:
        np.testing.assert_allclose([w[0] for w in each], weights)


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=6), st.floats(0.01, 1))
def test_the_rank_of_an_energy_is_the_smallest(values, share):
    ordered = np.sort(values)[::-1]
    whole = float(ordered @ ordered)
    rank = product.energy_rank(ordered, share)
    assert 1 <= rank <= len(values)
    assert product.energy_kept(ordered, rank) >= share * (1 - 1e-9)
    assert rank == 1 or product.energy_kept(ordered, rank - 1) < share
    assert product.energy_kept(ordered, len(values)) == pytest.approx(1) or not whole


@given(SIZES, SIZES, st.integers(1, 4), SEEDS)
def test_an_order_and_a_norm_are_of_the_product(out, width, rank, seed):
    rng = np.random.default_rng(seed)
    one = part(rng, out, width, rank)
    assert product.squared_norm(one) == pytest.approx(np.linalg.norm(dense(one)) ** 2)
    again = product.in_order(one)
    np.testing.assert_allclose(dense(again), dense(one), **CLOSE)
    for first in range(1, rank + 1):
        np.testing.assert_allclose(dense(again.first(first)), cut(dense(one), first), **CLOSE)
