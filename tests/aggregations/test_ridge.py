"""The ridge form of LoRA-FAIR, against the least-squares problem with every matrix written out."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.core.test_factor_gap import SHAPES, WEIGHTS, made, stacked
from tests.quadratic import bits, drawn, update_of

from shepherd.aggregations import mean, ridge
from shepherd.core import Adapter, Context, ServerState
from shepherd.core.factor_gap import pairs
from shepherd.errors import AdapterError

SEEDS = st.integers(0, 2**32)
LAMBDAS = st.floats(1e-3, 10.0)


def combined(adapter, updates, strength=0.01, rank=None):
    aggregation = ridge.build(ridge.Config(ridge=strength))
    return aggregation.combine(ServerState(round=0, adapter=adapter), iter(updates), Context(rank=rank))


def of(adapter, updates, name):
    """Local factors, (K, ...), and the weights."""
    shares = np.array([update.weight for update in updates])
    return np.stack([adapter[name].astype(float) + u.delta[name] for u in updates]), shares / shares.sum()


@given(SHAPES, WEIGHTS, LAMBDAS, SEEDS)
def test_b_is_the_least_squares_solution(shapes, weights, strength, seed):
    adapter, updates = made(shapes, weights, seed)
    result = combined(adapter, updates, strength)
    for pair in pairs(adapter):
        (a, shares), (b, _) = (of(adapter, updates, name) for name in pair)
        exact = np.einsum("k,kor,kri->oi", shares, b, a)
        mean_a, mean_b = np.tensordot(shares, a, 1), np.tensordot(shares, b, 1)
        size = np.sqrt(strength * np.sum(mean_a**2) / len(mean_a))
        # min ||missing - D A||^2 + size^2 ||D||^2, as one least-squares problem with rows added to A
        rows = np.concatenate([mean_a.T, size * np.eye(len(mean_a))])
        right = np.concatenate([(exact - mean_b @ mean_a).T, np.zeros((len(mean_a), len(mean_b)))])
        due = mean_b + np.linalg.lstsq(rows, right, rcond=None)[0].T
        np.testing.assert_allclose(adapter[pair.b] + result.delta[pair.b], due, rtol=1e-3, atol=1e-3)
        np.testing.assert_allclose(adapter[pair.a] + result.delta[pair.a], mean_a, rtol=1e-4, atol=1e-5)


@given(SHAPES, WEIGHTS, LAMBDAS, SEEDS)
def test_it_is_never_farther_from_the_exact_mean_than_the_plain_one(shapes, weights, strength, seed):
    adapter, updates = made(shapes, weights, seed)
    plain = mean.mean(ServerState(round=0, adapter=adapter), iter(updates), Context())
    for pair in pairs(adapter):
        (a, shares), (b, _) = (of(adapter, updates, name) for name in pair)
        exact = np.einsum("k,kor,kri->oi", shares, b, a)
        error = [
            np.linalg.norm(exact - (adapter[pair.b] + r.delta[pair.b]) @ (adapter[pair.a] + r.delta[pair.a]))
            for r in (combined(adapter, updates, strength), plain)
        ]
        assert error[0] <= error[1] + 1e-4


@given(SHAPES, st.integers(1, 4), WEIGHTS, SEEDS)
def test_each_expert_of_a_stack_is_fitted_on_its_own(shapes, experts, weights, seed):
    adapter, updates = made(
        [(2, width, out) for _, width, out in shapes for _ in range(experts)], weights, seed
    )
    together = [replace(update, delta=stacked(update.delta, experts)) for update in updates]
    got = combined(stacked(adapter, experts), together, rank=2).delta
    for name, due in stacked(combined(adapter, updates).delta, experts).items():
        np.testing.assert_allclose(got[name], due, rtol=1e-4, atol=1e-4)


def test_one_client_comes_back_bit_for_bit():
    one = update_of("c0", 1, weight=3.0)
    assert bits(combined(drawn(0), [one]).delta) == bits(one.delta)


@pytest.mark.parametrize("part", ["lora_A", "lora_B"])
def test_where_one_factor_travels_it_is_the_plain_mean(part):
    adapter, updates = made([(2, 5, 4)], [1.0, 2.0], 0)
    half = [replace(u, delta=Adapter({n: t for n, t in u.delta.items() if part in n})) for u in updates]
    plain = mean.mean(ServerState(round=0, adapter=adapter), iter(half), Context())
    assert bits(combined(adapter, half).delta) == bits(plain.delta)


def test_where_the_mean_of_a_is_zero_there_is_nothing_to_fit():
    adapter = Adapter({"m.lora_A.weight": [[1.0, 2.0]], "m.lora_B.weight": [[0.0], [1.0]]})
    opposite = [
        replace(
            update_of("c", 0), delta=Adapter({"m.lora_A.weight": [[a, 2 * a]], "m.lora_B.weight": [[b], [b]]})
        )
        for a, b in ((0.0, 1.0), (-2.0, 3.0))
    ]  # local A is (1, 2) and (-1, -2)
    result = combined(adapter, opposite)
    np.testing.assert_array_equal(result.delta["m.lora_B.weight"], [[2.0], [2.0]])


def test_updates_of_different_ranks_are_an_error_that_names_the_tensor():
    one, two = update_of("c0", 1), update_of("c1", 2)
    cut = Adapter({n: t[:1] if "lora_A" in n else t[:, :1] for n, t in two.delta.items()})
    with pytest.raises(AdapterError, match="lora_A"):
        combined(drawn(0), [one, replace(two, delta=cut)])


def test_rows_of_a_that_are_alike_have_a_solution_and_a_ridge_of_nothing_is_refused():
    alike = np.ones((1, 3, 5))
    assert np.isfinite(ridge.correction(np.ones((1, 4, 3)), alike, 1e-9)).all()
    with pytest.raises(ValueError, match="greater than or equal to 0"):
        ridge.Config(ridge=1e-300)
