from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.quadratic import bits, drawn, update_of

from shepherd.aggregations.mean import mean
from shepherd.core import Adapter, Context, ServerState, Update
from shepherd.errors import AdapterError, FederationError

STATE = ServerState(round=0, adapter=drawn(0))


def one(value, weight=1.0, **more):
    return Update(round=0, clients=("c",), delta=Adapter({"w": value}), weight=weight, **more)


def test_mean_by_hand():
    updates = [one([1.0, 10.0], 1), one([2.0, 20.0], 2), one([4.0, 40.0], 1)]
    merged = mean(STATE, iter(updates), Context())
    assert merged.delta["w"].tolist() == [2.25, 22.5]  # (1 + 4 + 4) / 4
    assert (merged.weight, merged.clients) == (4, ("c", "c", "c"))


def test_extra_is_averaged_with_the_same_weights():
    updates = [one([0.0], w, extra=Adapter({"c": [c]})) for w, c in [(3, 1.0), (1, 5.0)]]
    assert mean(STATE, updates, Context()).extra["c"].tolist() == [2.0]


weights = st.lists(st.floats(1e-3, 1e9), min_size=1, max_size=8)


@given(weights, st.integers(0, 2**32))
def test_mean_equals_numpy_average(weights, seed):
    updates = [update_of(f"c{k}", seed + k, w) for k, w in enumerate(weights)]
    merged = mean(STATE, updates, Context())
    for name, tensor in merged.delta.items():
        expected = np.average([u.delta[name].astype(float) for u in updates], axis=0, weights=weights)
        np.testing.assert_allclose(tensor, expected, rtol=1e-6, atol=1e-7)


@given(weights, st.integers(0, 2**32))
def test_a_mean_of_means_is_the_mean(weights, seed):
    updates = [update_of(f"c{k}", seed + k, w) for k, w in enumerate(weights)]
    half = len(updates) // 2
    workers = [mean(STATE, part, Context()) for part in (updates[:half], updates[half:]) if part]
    merged, straight = mean(STATE, workers, Context()), mean(STATE, updates, Context())
    assert merged.clients == straight.clients == tuple(u.client for u in updates)
    for name in straight.delta:
        np.testing.assert_allclose(merged.delta[name], straight.delta[name], rtol=2e-6, atol=2e-7)


@given(st.floats(1e-6, 1e12), st.integers(0, 2**32))
def test_one_client_comes_back_bit_for_bit(weight, seed):
    update = update_of("c", seed, weight)
    assert bits(mean(STATE, [update], Context()).delta) == bits(update.delta)


@pytest.mark.parametrize("updates", [[], [replace(update_of("c", 0), weight=0.0)]])
def test_a_mean_of_nothing_is_an_error_and_not_zero(updates):
    with pytest.raises(FederationError, match=r"round 1 .* no update with a weight above zero"):
        mean(STATE, updates, Context())


def test_updates_that_differ_in_layout_are_not_averaged():
    with pytest.raises(AdapterError, match="tensor w"):
        mean(STATE, [one([1.0, 2.0]), one([1.0])], Context())
