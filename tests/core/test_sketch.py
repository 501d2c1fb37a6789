"""The two-pass sketch against the dense sum."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shepherd.core import Seeded, product, sketch
from shepherd.core.product import Factors

CLOSE = {"rtol": 1e-8, "atol": 1e-8}


def cohort(seed, out, width, ranks):
    rng = np.random.default_rng(seed)
    parts = [Factors(rng.normal(size=(out, rank)), rng.normal(size=(rank, width))) for rank in ranks]
    return parts, list(rng.dirichlet(np.ones(len(ranks))))


def sketched(parts, weights, columns):
    pairs = list(zip(parts, weights, strict=True))
    shared = sketch.omega(Seeded(3), parts[0].a.shape[1], columns)
    found = sketch.basis(sum(sketch.first_message(part, p, shared) for part, p in pairs))
    return sketch.factors(found, sum(sketch.second_message(part, p, found) for part, p in pairs))


@given(
    st.integers(1, 12), st.integers(1, 12), st.lists(st.integers(1, 4), min_size=1, max_size=4),
    st.integers(0, 3), st.integers(0, 2**32),
)  # fmt: skip
def test_it_is_exact_if_it_has_as_many_columns_as_the_sum_has_ranks(out, width, ranks, more, seed):
    parts, weights = cohort(seed, out, width, ranks)
    whole = product.stacked(parts, weights)
    got = sketched(parts, weights, min(out, width, sum(ranks)) + more)
    np.testing.assert_allclose(got.b @ got.a, whole.b @ whole.a, **CLOSE)


def test_with_fewer_columns_it_is_close_to_the_best_of_that_rank():
    parts, weights = cohort(0, 60, 50, [8] * 5)
    whole = product.stacked(parts, weights)
    dense = whole.b @ whole.a
    got = sketched(parts, weights, 12)
    over = np.linalg.norm(dense - got.b @ got.a)
    best = np.linalg.norm(product.spectrum(whole).values[12:])
    assert best <= over <= 1.5 * best
    assert over == pytest.approx(np.linalg.norm(dense - got.b @ (got.b.T @ dense)))  # it is a projection


def test_messages_are_linear_so_sums_of_parts_of_the_cohort_are_sums():
    parts, weights = cohort(1, 9, 7, [2, 3])
    shared = sketch.omega(Seeded(0), 7, 4)
    stack = product.stacked(parts, weights)
    one = sum(sketch.first_message(part, p, shared) for part, p in zip(parts, weights, strict=True))
    np.testing.assert_allclose(one, sketch.first_message(stack, 1.0, shared), **CLOSE)
    found = sketch.basis(one)
    two = sum(sketch.second_message(part, p, found) for part, p in zip(parts, weights, strict=True))
    np.testing.assert_allclose(two, sketch.second_message(stack, 1.0, found), **CLOSE)


def test_all_draw_the_same_matrix():
    assert np.array_equal(sketch.omega(Seeded(5), 6, 2), sketch.omega(Seeded(5), 6, 2))
    assert not np.array_equal(sketch.omega(Seeded(5), 6, 2), sketch.omega(Seeded(6), 6, 2))
