from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.quadratic import drawn

from shepherd.core import Adapter, Seeded, Update, corner, of_rank, padded, shapes_of
from shepherd.core.factor_gap import SKETCH_COLUMNS, Gap, pairs

SHAPES = st.lists(st.tuples(*[st.integers(1, 6)] * 3), min_size=1, max_size=3)  # (rank, in, out)
WEIGHTS = st.lists(st.floats(0.1, 100), min_size=1, max_size=5)


def layout(shapes):
    named = {f"m{k}.lora_A.weight": (r, width) for k, (r, width, _) in enumerate(shapes)}
    return named | {f"m{k}.lora_B.weight": (out, r) for k, (r, _, out) in enumerate(shapes)}


def made(shapes, weights, seed):
    """A broadcast and a cohort's updates."""
    named = layout(shapes)
    updates = [
        Update(round=0, clients=("c",), delta=drawn(seed + k + 1, named), weight=weight)
        for k, weight in enumerate(weights)
    ]
    return drawn(seed, named), updates


def measured(adapter, updates, **how):
    gap = Gap(adapter, Seeded(0), **how)
    for update in updates:
        gap.add(update)
    return gap.value()


def dense(adapter, updates):
    """||mean(BA) - mean(B) mean(A)|| / ||mean(BA)||, with every product written out."""
    shares = np.array([update.weight for update in updates]) / sum(update.weight for update in updates)
    above, below = [], []
    for a, b in pairs(adapter):
        local_a = [adapter[a].astype(float) + u.delta.get(a, np.zeros(1)) for u in updates]
        local_b = [adapter[b].astype(float) + u.delta.get(b, np.zeros(1)) for u in updates]
        mean_product = sum(p * y @ x for p, x, y in zip(shares, local_a, local_b, strict=True))
        mean_a, mean_b = np.tensordot(shares, local_a, 1), np.tensordot(shares, local_b, 1)
        above.append(np.linalg.norm(mean_product - mean_b @ mean_a))
        below.append(np.linalg.norm(mean_product))
    return np.linalg.norm(above) / np.linalg.norm(below)


@given(SHAPES, WEIGHTS, st.integers(0, 2**32))
def test_equals_the_dense_computation(shapes, weights, seed):
    adapter, updates = made(shapes, weights, seed)
    assert measured(adapter, updates) == pytest.approx(dense(adapter, updates), rel=1e-9, abs=1e-12)


@given(SHAPES, st.integers(1, 4), WEIGHTS, st.integers(0, 2**32))
def test_each_expert_of_a_stack_is_a_module_of_its_own(shapes, experts, weights, seed):
    """A stack of rank 2 by expert, against its matrices as modules that are named one by one."""
    one_by_one = [(2, width, out) for _, width, out in shapes for _ in range(experts)]
    adapter, updates = made(one_by_one, weights, seed)
    together = [replace(update, delta=stacked(update.delta, experts)) for update in updates]
    expected = dense(adapter, updates)
    for budget in (2**20, 0):  # the sketch is drawn by width, so it is the same one
        gap = measured(stacked(adapter, experts), together, rank=2, budget=budget)
        assert gap == pytest.approx(measured(adapter, updates, budget=budget), rel=1e-9, abs=1e-12)
        assert budget == 0 or gap == pytest.approx(expected, rel=1e-9, abs=1e-12)


def stacked(adapter, experts):
    """Modules m0, m1, ... in groups as PEFT lays them: A's rows by expert, B's columns by rank."""
    tensors = {}
    for first in range(0, len(pairs(adapter)), experts):
        group = range(first, first + experts)
        a = np.stack([adapter[f"m{k}.lora_A.weight"] for k in group])  # (E, r, in)
        b = np.stack([adapter[f"m{k}.lora_B.weight"] for k in group], axis=2)  # (out, r, E)
        tensors[f"m{first}.lora_A.weight"] = a.reshape(-1, a.shape[2])
        tensors[f"m{first}.lora_B.weight"] = b.reshape(len(b), -1)
    return Adapter(tensors)


@given(st.tuples(*[st.integers(1, 6)] * 3), WEIGHTS, st.integers(0, 2**32))
def test_the_numerator_is_a_covariance(shape, weights, seed):
    """sum_k p_k (B_k - mean B)(A_k - mean A), and the denominator from the stacked factors."""
    adapter, updates = made([shape], weights, seed)
    shares = np.array(weights) / sum(weights)
    a = np.stack([adapter["m0.lora_A.weight"].astype(float) + u.delta["m0.lora_A.weight"] for u in updates])
    b = np.stack([adapter["m0.lora_B.weight"].astype(float) + u.delta["m0.lora_B.weight"] for u in updates])
    off_a, off_b = (x - np.average(x, axis=0, weights=weights) for x in (a, b))
    covariance = np.einsum("k,kor,kri->oi", shares, off_b, off_a)
    whole = np.einsum("k,kor,kri->oi", shares, b, a)
    expected = np.linalg.norm(covariance) / np.linalg.norm(whole)
    assert measured(adapter, updates) == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_by_hand():
    """Two clients of equal weight with BA = 1 and BA = -1 * -3: mean(BA) = 2, mean(B) mean(A) = 0."""
    adapter = Adapter({"m.lora_A.weight": [[0.0]], "m.lora_B.weight": [[0.0]]})
    locals_ = [(1.0, 1.0), (-3.0, -1.0)]
    updates = [
        Update(
            round=0,
            clients=("c",),
            delta=Adapter({"m.lora_A.weight": [[a]], "m.lora_B.weight": [[b]]}),
            weight=2.0,
        )
        for a, b in locals_
    ]
    assert measured(adapter, updates) == pytest.approx(2.0 / 2.0)


def test_one_client_has_no_gap():
    adapter, updates = made([(2, 5, 4), (3, 7, 2)], [3.0], 0)
    assert measured(adapter, updates) < 1e-15


@pytest.mark.parametrize("kept", [".lora_A.", ".lora_B."])
def test_where_one_factor_travels_there_is_no_gap(kept):
    adapter, updates = made([(2, 5, 4)], [1.0, 2.0], 0)
    half = [
        Update(
            round=0,
            clients=("c",),
            delta=Adapter({n: t for n, t in u.delta.items() if kept in n}),
            weight=u.weight,
        )
        for u in updates
    ]
    assert measured(adapter, half) == 0.0
    assert dense(adapter, half) == pytest.approx(0.0, abs=1e-15)


def test_without_updates_or_without_pairs_the_gap_is_zero():
    assert measured(drawn(0), []) == 0.0
    bias = Adapter({"bias": [1.0]})
    assert measured(bias, [Update(round=0, clients=("c",), delta=bias, weight=1.0)]) == 0.0


def test_a_small_change_on_a_large_broadcast_keeps_its_digits():
    adapter, updates = made([(2, 5, 4)], [1.0, 1.0], 0)
    large = adapter.times(1e4)
    small = [Update(round=0, clients=("c",), delta=u.delta.times(1e-4), weight=1.0) for u in updates]
    change = [u.delta for u in small]
    off = [{n: (change[0][n].astype(float) - change[1][n]) / 2 for n in adapter}] * 2
    covariance = off[0]["m0.lora_B.weight"] @ off[0]["m0.lora_A.weight"]
    whole = large["m0.lora_B.weight"].astype(float) @ large["m0.lora_A.weight"]
    expected = np.linalg.norm(covariance) / np.linalg.norm(whole)  # about 1e-16
    assert measured(large, small) == pytest.approx(expected, rel=1e-5)


def test_the_sketch_stays_within_its_tolerance():
    """64 columns: a deviation of at most sqrt(2 / 64) of a square, so 9% of a norm; here 30 sketches."""
    adapter, updates = made([(1, 90, 80), (1, 90, 70)], [1.0, 2.0, 3.0], 0)
    exact = measured(adapter, updates)
    budget = 8 * (80 + 70) * SKETCH_COLUMNS
    ratios = []
    for seed in range(30):
        gap = Gap(adapter, Seeded(seed), budget=budget)
        for update in updates:
            gap.add(update)
        ratios.append(gap.value() / exact)
    assert np.std(ratios) > 1e-3  # it was sketched
    assert np.abs(np.array(ratios) - 1).max() < 0.35
    assert np.mean(ratios) == pytest.approx(1.0, abs=0.05)


def test_the_same_seed_gives_the_same_sketch():
    adapter, updates = made([(2, 90, 80)], [1.0, 2.0], 0)
    assert measured(adapter, updates, budget=1) == measured(adapter, updates, budget=1)


def test_memory_does_not_grow_with_the_cohort():
    adapter, updates = made([(2, 40, 30)], [1.0], 0)

    def held(count, budget):
        gap = Gap(adapter, Seeded(0), budget=budget)
        for update in updates * count:
            gap.add(update)
        return sum(m.nbytes for m in (*gap._changes.values(), *gap._products.values()))

    assert held(50, 1 << 20) == held(1, 1 << 20) == 2 * adapter.nbytes + 8 * 30 * 40
    assert held(50, 8 * 30 * 10) == 2 * adapter.nbytes + 8 * 30 * 10  # ten columns fit


@given(WEIGHTS, st.lists(st.integers(1, 4), min_size=5, max_size=5), st.integers(0, 2**32))
def test_a_client_of_fewer_ranks_counts_with_zeros_in_the_others(weights, ranks, seed):
    """Its change, written out: minus the broadcast where it has no rank."""
    adapter, updates = made([(4, 5, 6)], weights, seed)
    small, whole = [], []
    for update, rank in zip(updates, ranks, strict=False):
        delta = {n: corner(t, of_rank(n, t.shape, rank)) for n, t in update.delta.items()}
        cut = {n: -adapter[n] for n in delta}
        for name, tensor in delta.items():
            cut[name][tuple(map(slice, tensor.shape))] = tensor
        small.append(replace(update, delta=Adapter(delta)))
        whole.append(replace(update, delta=Adapter(cut)))
    assert measured(adapter, small) == measured(adapter, whole)
    assert measured(adapter, small) == pytest.approx(dense(adapter, whole), rel=1e-6, abs=1e-6)


def test_ranks_that_nobody_trains_change_nothing():
    """Side ranks of the broadcast, which are in every client's model alike."""
    adapter, updates = made([(4, 5, 6)], [1.0, 2.0], 0)
    with_side = padded(adapter, 3).plus(drawn(9, shapes_of(padded(adapter, 3))), 1.0)
    assert measured(with_side, updates) > 0
    trained = Adapter({n: corner(t, adapter[n].shape) for n, t in with_side.items()})
    assert measured(with_side, updates) == pytest.approx(measured(trained, updates), rel=1e-6)
