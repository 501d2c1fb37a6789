"""The audit of a round, against the same figures from every product written out."""

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.core.test_factor_gap import SHAPES, WEIGHTS, layout, made, measured, stacked
from tests.quadratic import drawn

from shepherd.core import Adapter, Seeded, Update, product_sketch
from shepherd.core.factor_gap import pairs
from shepherd.core.product_sketch import WIDTH, ProductSketch
from shepherd.core.ranks import of_rank
from shepherd.core.round_audit import MAX_BY_CLIENT, RoundAudit

SEEDS = st.integers(0, 2**32)


def products(adapter, delta):
    """The entries of every product after a change, in one row."""
    whole = {name: np.array(tensor, float) for name, tensor in adapter.items()}
    for name, change in delta.items():
        whole[name][tuple(map(slice, change.shape))] += change
    return np.concatenate([(whole[pair.b] @ whole[pair.a]).ravel() for pair in pairs(adapter)])


def mean_of(updates, adapter):
    total = sum(update.weight for update in updates)
    delta = {
        name: sum(update.weight / total * update.delta[name].astype(float) for update in updates)
        for name in adapter
    }
    return replace(updates[0], delta=Adapter(delta))


def dense(adapter, updates, result):
    before = products(adapter, {})
    shares = np.array([update.weight for update in updates]) / sum(update.weight for update in updates)
    changes = [products(adapter, update.delta) - before for update in updates]
    mean, change = shares @ changes, products(adapter, result.delta) - before
    spread = math.sqrt(sum(p * np.sum((x - mean) ** 2) for p, x in zip(shares, changes, strict=True)))
    cosines = [x @ change / (np.linalg.norm(x) * np.linalg.norm(change)) for x in changes]
    return {
        "spread": spread / np.linalg.norm(mean),
        "energy_kept": 1 - np.sum((mean - change) ** 2) / np.sum((before + mean) ** 2),
        "cosine": np.mean(cosines),
    }, cosines


def filled(delta, adapter):
    """The change with zeros for the ranks that it does not have."""
    missing = {
        name: [(0, whole - own) for whole, own in zip(adapter[name].shape, tensor.shape, strict=True)]
        for name, tensor in delta.items()
    }
    return Adapter({name: np.pad(tensor, missing[name]) for name, tensor in delta.items()})


def audited(adapter, updates, seed=0, **how):
    audit = RoundAudit(adapter, Seeded(seed), **how)
    for update in updates:
        audit.add(update)
    return audit


def named(updates):
    return [replace(update, clients=(f"c{k}",)) for k, update in enumerate(updates)]


@given(SHAPES, WEIGHTS, SEEDS)
def test_equals_the_dense_computation(shapes, weights, seed):
    adapter, updates = made(shapes, weights, seed)
    updates, result = named(updates), mean_of(updates, adapter)
    audit = audited(adapter, updates)
    figures, cosines = dense(adapter, updates, result)
    assert audit.figures(result) == pytest.approx(figures, rel=1e-9, abs=1e-9)
    assert list(audit.cosines(result).values()) == pytest.approx(cosines, abs=1e-6)  # kept in float32


@given(SHAPES, WEIGHTS, SEEDS)
def test_of_averaged_factors_the_energy_kept_is_what_the_gap_leaves(shapes, weights, seed):
    adapter, updates = made(shapes, weights, seed)
    kept = audited(adapter, updates).figures(mean_of(updates, adapter))["energy_kept"]
    assert kept == pytest.approx(1 - measured(adapter, updates) ** 2, rel=1e-4, abs=1e-4)


@given(st.tuples(st.integers(1, 3), st.integers(1, 8), st.integers(1, 8)), WEIGHTS, SEEDS)
def test_of_a_cut_mean_the_energy_kept_is_the_share_of_the_squared_singular_values(shape, weights, seed):
    rank = shape[0]
    adapter, updates = made([shape], weights, seed)
    before = products(adapter, {})
    shares = np.array(weights) / sum(weights)
    mean = shares @ [products(adapter, update.delta) for update in updates]
    u, s, v = np.linalg.svd(mean.reshape(shape[2], shape[1]), full_matrices=False)
    assert before.shape == mean.shape
    u, v = (np.pad(x, pad) for x, pad in ((u, ((0, 0), (0, rank))), (v, ((0, rank), (0, 0)))))
    s_padded = np.pad(s, (0, rank))
    cut = {"m0.lora_A.weight": v[:rank], "m0.lora_B.weight": u[:, :rank] * s_padded[:rank]}
    change = Adapter({name: cut[name] - adapter[name] for name in adapter})
    kept = audited(adapter, updates).figures(replace(updates[0], delta=change))["energy_kept"]
    assert kept == pytest.approx(np.sum(s[:rank] ** 2) / np.sum(s**2), abs=1e-4)


@given(SHAPES, st.integers(1, 4), WEIGHTS, SEEDS)
def test_each_expert_of_a_stack_is_a_module_of_its_own(shapes, experts, weights, seed):
    one_by_one = [(2, width, out) for _, width, out in shapes for _ in range(experts)]
    adapter, updates = made(one_by_one, weights, seed)
    result = mean_of(updates, adapter)
    together = [replace(update, delta=stacked(update.delta, experts)) for update in updates]
    audit = audited(stacked(adapter, experts), together, rank=2, width=10**4)
    got = audit.figures(replace(result, delta=stacked(result.delta, experts)))
    assert got == pytest.approx(dense(adapter, updates, result)[0], rel=1e-6, abs=1e-6)


@given(SHAPES, WEIGHTS, SEEDS)
def test_a_client_of_fewer_ranks_moves_the_first_ones(shapes, weights, seed):
    adapter, updates = made(shapes, weights, seed)
    few = [
        replace(
            u, delta=Adapter({n: t[tuple(map(slice, of_rank(n, t.shape, 1)))] for n, t in u.delta.items()})
        )
        for u in updates
    ]
    padded = [replace(u, delta=filled(u.delta, adapter)) for u in few]
    result = updates[0]
    assert audited(adapter, few).figures(result) == pytest.approx(audited(adapter, padded).figures(result))
    assert audited(adapter, few).figures(result) == pytest.approx(dense(adapter, padded, result)[0], abs=1e-9)
    assert measured(adapter, few) == pytest.approx(measured(adapter, padded))


@pytest.mark.parametrize("part", ["lora_A", "lora_B"])
def test_a_factor_that_is_not_sent_did_not_move(part):
    adapter, updates = made([(2, 5, 4), (2, 3, 6)], [1.0, 2.0, 3.0], 0)
    half = [
        replace(u, delta=Adapter({n: t for n, t in u.delta.items() if part in n}), clients=(f"c{k}",))
        for k, u in enumerate(updates)
    ]
    figures, cosines = dense(adapter, half, half[0])
    audit = audited(adapter, half)
    assert audit.figures(half[0]) == pytest.approx(figures)
    assert list(audit.cosines(half[0]).values()) == pytest.approx(cosines, abs=1e-6)


@settings(max_examples=20)
@given(st.integers(1, 4), WEIGHTS, SEEDS)
def test_the_basis_of_a_clients_factors_does_not_matter(rank, weights, seed):
    adapter, updates = made([(rank, 5, 4)], weights, seed)
    turn = np.linalg.qr(np.random.default_rng(seed).normal(size=(rank, rank)))[0]
    turned = []
    for update in updates:
        a = turn.T @ (adapter["m0.lora_A.weight"] + update.delta["m0.lora_A.weight"])
        b = (adapter["m0.lora_B.weight"] + update.delta["m0.lora_B.weight"]) @ turn
        local = {"m0.lora_A.weight": a, "m0.lora_B.weight": b}
        turned.append(replace(update, delta=Adapter({n: local[n] - adapter[n] for n in adapter})))
    expected = audited(adapter, updates).figures(updates[0])
    assert audited(adapter, turned).figures(updates[0]) == pytest.approx(expected, rel=1e-3, abs=1e-3)


def test_one_client_has_no_spread_and_goes_the_way_of_the_mean():
    adapter, updates = made([(2, 5, 4)], [3.0], 0)
    assert audited(adapter, updates).figures(updates[0]) == pytest.approx(
        {"spread": 0.0, "energy_kept": 1.0, "cosine": 1.0}
    )


def test_by_hand():
    """Changes of the product by 3 and by 1 with weights 1 and 3: the mean is 1.5, the spread sqrt(0.75)."""
    adapter = Adapter({"m.lora_A.weight": [[1.0]], "m.lora_B.weight": [[0.0]]})
    updates = [
        Update(round=0, clients=(name,), delta=Adapter({"m.lora_B.weight": [[b]]}), weight=weight)
        for name, b, weight in (("a", 3.0, 1.0), ("b", 1.0, 3.0))
    ]
    audit = audited(adapter, updates)
    result = replace(updates[0], delta=Adapter({"m.lora_B.weight": [[-1.0]]}))
    expected = {"spread": math.sqrt(0.75) / 1.5, "energy_kept": 1 - (2.5 / 1.5) ** 2, "cosine": -1.0}
    assert audit.figures(result) == pytest.approx(expected)
    assert audit.cosines(result) == {"a": -1.0, "b": -1.0}


def test_without_a_number_there_is_none():
    adapter, updates = made([(2, 5, 4)], [1.0, 1.0], 0)
    nothing = replace(updates[0], delta=updates[0].delta.times(0.0))
    assert audited(adapter, []).figures(nothing) == {}
    assert audited(adapter, []).cosines(nothing) == {}
    still = audited(adapter, [nothing])
    assert math.isnan(still.figures(nothing)["spread"])
    assert math.isnan(still.figures(nothing)["cosine"])
    assert still.cosines(updates[0]) == {}
    assert audited(Adapter({"bias": [1.0]}), [nothing]).cosines(nothing) == {}


def test_a_sketch_is_near_and_right_on_average():
    """Three modules of 14,000 entries: width 1024 deviates by sqrt(2 / 1024) of the squares to twice that."""
    shapes = [(3, 90, 80), (3, 40, 70), (2, 60, 70)]
    adapter, updates = made(shapes, [1.0, 2.0, 3.0], 0)
    updates = [replace(u, delta=u.delta.times(0.1)) for u in named(updates)]
    result = mean_of(updates, adapter)
    figures, cosines = dense(adapter, updates, result)
    found = [audited(adapter, updates, seed) for seed in range(30)]
    assert not ProductSketch(adapter, Seeded(0)).exact
    for name, due in figures.items():
        got = np.array([audit.figures(result)[name] for audit in found])
        assert np.std(got) > 1e-7  # it was sketched
        assert np.abs(got - due).max() < 0.2
        assert np.mean(got) == pytest.approx(due, abs=0.03)
    each = np.array([list(audit.cosines(result).values()) for audit in found])
    assert np.abs(each - cosines).max() < 0.2
    assert np.mean(each, axis=0) == pytest.approx(cosines, abs=0.03)


def test_the_sketch_of_modules_wider_than_itself_is_right_on_average():
    """In more buckets than the sketch has, and experts that do not share their buckets."""
    shape = {"m.lora_A.weight": (4, 150), "m.lora_B.weight": (70, 4)}
    adapter, (one, two) = drawn(0, shape), (drawn(1, shape), drawn(2, shape))
    for rank in (None, 2):  # one matrix of rank 4, two experts' of rank 2
        exact = ProductSketch(adapter, Seeded(0), rank, width=10**6)
        assert exact.exact
        due = exact.change(one) @ exact.change(two)
        scale = np.linalg.norm(exact.change(one)) * np.linalg.norm(exact.change(two))
        got = []
        for seed in range(200):
            sketch = ProductSketch(adapter, Seeded(seed), rank, width=32)
            got.append(sketch.change(one) @ sketch.change(two))
        assert np.std(got) / scale < 2 * math.sqrt(2 / 32)
        assert np.mean(got) == pytest.approx(due, abs=0.06 * scale)


def test_memory_does_not_grow_with_the_cohort():
    adapter, updates = made([(2, 90, 80)], [1.0], 0)

    def held(count):
        audit = audited(adapter, [replace(updates[0], clients=(f"c{k}",)) for k in range(count)])
        return audit, sum(vector.nbytes for vector in (audit._kept or {}).values())

    for count in (1, MAX_BY_CLIENT):
        audit, size = held(count)
        assert size == count * 4 * WIDTH
        assert len(audit.cosines(updates[0])) == count
    audit, size = held(MAX_BY_CLIENT + 1)
    assert size == 0
    assert audit.cosines(updates[0]) == {}
    assert audit.figures(updates[0])["cosine"] == pytest.approx(1.0)


def test_what_is_not_kept_of_the_broadcast_is_made_again(monkeypatch):
    """A base with thousands of experts has more of it than a round may keep."""
    adapter, updates = made([(2, 90, 80), (2, 70, 60), (2, 50, 40)], [1.0, 2.0], 0)
    updates = named(updates)
    whole = audited(adapter, updates)
    assert len(whole._sketch._kept) == 3
    one = sum(side.nbytes for side in whole._sketch._kept[0])
    for most, count in ((one - 1, 0), (one, 1), (2 * one, 2)):
        monkeypatch.setattr(product_sketch, "MAX_KEPT_BYTES", most)
        some = audited(adapter, updates)
        assert len(some._sketch._kept) == count
        assert some.figures(updates[0]) == whole.figures(updates[0])
        assert some.cosines(updates[0]) == whole.cosines(updates[0])


def test_buckets_and_signs_take_three_bytes_for_each_row_and_column():
    adapter, updates = made([(2, 90, 80)], [1.0], 0)
    (module,) = audited(adapter, updates)._sketch._modules
    held = [array for side in (module.a, module.b) for array in side]
    assert sum(array.nbytes for array in held) == 3 * (90 + 80)
    assert all(array.base is None for array in held)


def test_of_a_merged_update_no_client_is_told_apart():
    adapter, updates = made([(2, 5, 4)], [1.0, 2.0], 0)
    merged = [replace(updates[0], clients=("a", "b")), replace(updates[1], clients=("c",))]
    for order in (merged, merged[::-1]):
        assert audited(adapter, order).cosines(updates[0]) == {}


def test_the_same_seed_gives_the_same_bits():
    adapter, updates = made([(2, 90, 80)], [1.0, 2.0], 0)
    one, two = (audited(adapter, updates).figures(updates[0]) for _ in range(2))
    assert one == two
    assert layout([(2, 90, 80)]).keys() == adapter.keys()
