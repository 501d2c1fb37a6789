"""Inner products of updates against dense products, and what each space sees."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.quadratic import drawn

from shepherd.core import Adapter, closeness
from shepherd.core.closeness import gram, median, norms, squared_distances

A, B = "q.lora_A.weight", "q.lora_B.weight"


def dense(adapter, change):
    """The change of each product as one vector, with the matrices formed."""
    found = []
    for name in adapter:
        if ".lora_A." in name:
            b_name = name.replace(".lora_A.", ".lora_B.")
            a, b = adapter[name].astype(float), adapter[b_name].astype(float)
            after_a = a + change.get(name, np.zeros_like(a))
            after_b = b + change.get(b_name, np.zeros_like(b))
            found.append((after_b @ after_a - b @ a).ravel())
    return np.concatenate(found)


@settings(max_examples=40)
@given(
    rank=st.integers(1, 4),
    width=st.integers(1, 7),
    out=st.integers(1, 6),
    count=st.integers(1, 5),
    scale=st.sampled_from([1e-3, 1.0, 1e3]),
    seed=st.integers(0, 99),
)
def test_products_are_those_of_the_dense_matrices(rank, width, out, count, scale, seed):
    shapes = {A: (rank, width), B: (out, rank)}
    adapter = drawn(seed, shapes)
    changes = [drawn(seed + 1 + k, shapes, scale) for k in range(count)]
    rows = np.stack([dense(adapter, change) for change in changes])
    due = rows @ rows.T
    np.testing.assert_allclose(gram("product", adapter, changes), due, rtol=1e-6, atol=1e-6 * due.max())


def test_a_block_at_a_time_gives_the_same(monkeypatch):
    adapter, changes = drawn(0), [drawn(k) for k in range(1, 8)]
    whole = gram("product", adapter, changes)
    monkeypatch.setattr(closeness, "MAX_BLOCK_BYTES", 1)
    np.testing.assert_allclose(gram("product", adapter, changes), whole, rtol=1e-12)


def test_a_factor_that_is_not_sent_did_not_move():
    adapter = drawn(0)
    changes = [{n: t for n, t in drawn(k).items() if ".lora_B." in n} for k in (1, 2, 3)]
    rows = np.stack([dense(adapter, change) for change in changes])
    np.testing.assert_allclose(gram("product", adapter, changes), rows @ rows.T, rtol=1e-6)


def test_experts_have_a_product_each():
    adapter = drawn(0, {A: (6, 4), B: (5, 6)})  # three experts of rank 2
    changes = [drawn(k, {A: (6, 4), B: (5, 6)}) for k in (1, 2, 3)]

    def vector(change):
        found = []
        for expert in range(3):
            rows, columns = slice(2 * expert, 2 * expert + 2), slice(expert, 6, 3)
            a, b = adapter[A][rows].astype(float), adapter[B][:, columns].astype(float)
            found.append(((b + change[B][:, columns]) @ (a + change[A][rows]) - b @ a).ravel())
        return np.concatenate(found)

    rows = np.stack([vector(change) for change in changes])
    np.testing.assert_allclose(gram("product", adapter, changes, rank=2), rows @ rows.T, rtol=1e-6)


def rotation(size, seed):
    return np.linalg.qr(np.random.default_rng(seed).standard_normal((size, size)))[0]


@settings(max_examples=20)
@given(seed=st.integers(0, 99))
def test_products_do_not_see_the_factors_of_each_client(seed):
    """Every client in a basis of its own: the same for products, and not for factors."""
    adapter, changes = drawn(seed), [drawn(seed + k) for k in range(1, 6)]
    turned = []
    for number, change in enumerate(changes):
        own = {}
        for a in (name for name in adapter if ".lora_A." in name):
            b = a.replace(".lora_A.", ".lora_B.")
            turn = rotation(len(adapter[a]), 1000 * seed + number)
            own[a] = turn.T @ (adapter[a] + change[a]) - adapter[a]
            own[b] = (adapter[b] + change[b]) @ turn - adapter[b]
        turned.append(Adapter(own))
    plain = gram("product", adapter, changes)
    np.testing.assert_allclose(gram("product", adapter, turned), plain, rtol=1e-4, atol=1e-5 * plain.max())
    assert not np.allclose(gram("factors", adapter, turned), gram("factors", adapter, changes), rtol=0.05)


@pytest.mark.parametrize("space", ["factors", "product", "both"])
def test_distances_and_norms_are_those_of_the_vectors(space):
    adapter, changes = drawn(0), [drawn(k) for k in range(1, 6)]
    own = gram(space, adapter, changes)
    if space == "both":
        parts = [gram(each, adapter, changes) for each in ("factors", "product")]
        np.testing.assert_allclose(own, sum(part / np.median(np.diag(part)) for part in parts))
        first = gram("both", adapter, changes, shares=[1.0, 0.0, 0.0, 0.0, 0.0])
        np.testing.assert_allclose(first, sum(part / part[0, 0] for part in parts))
    values, vectors = np.linalg.eigh(own)
    points = vectors * np.sqrt(np.maximum(values, 0))  # points with these inner products
    np.testing.assert_allclose(norms(own), np.linalg.norm(points, axis=1), rtol=1e-6)
    apart = np.linalg.norm(points[:, None] - points, axis=-1) ** 2
    np.testing.assert_allclose(squared_distances(own), apart, rtol=1e-6, atol=1e-9)


def test_changes_of_zero_have_inner_products_of_zero():
    zeros = [drawn(0).times(0.0)] * 3
    for space in ("factors", "product", "both"):
        assert not gram(space, drawn(1), zeros).any()


@settings(max_examples=40)
@given(
    values=st.lists(st.floats(0.0, 1e6), min_size=1, max_size=7),
    data=st.data(),
)
def test_the_median_by_whole_shares_is_that_of_values_named_so_often(values, data):
    counts = data.draw(st.lists(st.integers(0, 4), min_size=len(values), max_size=len(values)).filter(any))
    named = sorted(value for value, count in zip(values, counts, strict=True) for _ in range(count))
    assert median(np.array(values), counts) == named[(len(named) - 1) // 2]
