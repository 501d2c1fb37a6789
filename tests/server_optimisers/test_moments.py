"""Server optimisers against PyTorch's, against the published algorithm written out, and worked by hand."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.quadratic import bits, method

from shepherd import plugins
from shepherd.config import PartTable, validated
from shepherd.core import Adapter, ServerState, Update
from shepherd.errors import FederationError, SettingsError
from shepherd.rounds import start
from shepherd.rounds.loop import UNKNOWN_CONTEXT, Seeded, next_state

ADAPTIVE = ("fedadagrad", "fedadam", "fedyogi")
NAMES = (*ADAPTIVE, "fedavgm", "nesterov")
ROUNDS = 6
shapes = st.lists(st.tuples(st.integers(1, 4), st.integers(1, 5)), min_size=1, max_size=3)
rates = st.floats(1e-3, 2.0)
shares = st.floats(0.0, 0.99)


def built(name, **keys):
    return plugins.server_optimiser(PartTable(name=name, **keys))


def drawn(seed, shapes, scale=1.0):
    rng = np.random.default_rng(seed)
    return Adapter({f"t{k}": scale * rng.standard_normal(shape) for k, shape in enumerate(shapes)})


def update(delta):
    return Update(round=0, delta=delta, weight=1.0, clients=("c",))


def trajectory(server, shapes, scale=1.0, rounds=ROUNDS):
    state = start(method(server=server), drawn(0, shapes))
    for seed in range(1, rounds + 1):
        state = server.apply(state, update(drawn(seed, shapes, scale)))
        yield state


def of_torch(make, shapes, rounds=ROUNDS):
    """The tensors of an optimiser of PyTorch after each step along minus the same changes, in float64."""
    own = {n: torch.tensor(t, dtype=torch.float64).requires_grad_() for n, t in drawn(0, shapes).items()}
    optimiser = make(list(own.values()))
    for seed in range(1, rounds + 1):
        for name, change in drawn(seed, shapes).items():
            own[name].grad = -torch.tensor(change, dtype=torch.float64)
        optimiser.step()
        yield {name: tensor.detach().numpy().copy() for name, tensor in own.items()}


def assert_follows(states, theirs):
    for state, due in zip(states, theirs, strict=True):
        for name, tensor in due.items():
            np.testing.assert_allclose(state.adapter[name], tensor, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize(("name", "ahead"), [("fedavgm", False), ("nesterov", True)])
@given(shapes=shapes, rate=rates, momentum=st.floats(0.01, 0.99))
@settings(max_examples=25, deadline=None)
def test_momentum_is_that_of_torch(name, ahead, shapes, rate, momentum):
    ours = trajectory(built(name, learning_rate=rate, momentum=momentum), shapes)
    assert_follows(
        ours, of_torch(lambda own: torch.optim.SGD(own, lr=rate, momentum=momentum, nesterov=ahead), shapes)
    )


@given(shapes=shapes, rate=rates, tau=st.floats(1e-3, 1.0))
@settings(max_examples=25, deadline=None)
def test_fedadagrad_is_torchs_adagrad_whose_accumulator_begins_at_tau_squared(shapes, rate, tau):
    def adagrad(own):
        return torch.optim.Adagrad(own, lr=rate, initial_accumulator_value=tau**2, eps=tau)

    assert_follows(
        trajectory(built("fedadagrad", learning_rate=rate, tau=tau), shapes), of_torch(adagrad, shapes)
    )


@given(shapes=shapes, rate=rates, beta1=shares, beta2=st.floats(0.1, 0.99))
@settings(max_examples=25, deadline=None)
def test_fedadam_is_torchs_adam_but_for_its_start_and_the_correction_of_bias(shapes, rate, beta1, beta2):
    """Adam's t-th step is FedAdam's at tau near 0 with the rate times (1 - beta1^t) / sqrt(1 - beta2^t)."""
    tau = 1e-12
    theirs = of_torch(lambda own: torch.optim.Adam(own, lr=rate, betas=(beta1, beta2), eps=0.0), shapes)
    before, ours_before = drawn(0, shapes), drawn(0, shapes)
    ours = trajectory(built("fedadam", learning_rate=rate, betas=[beta1, beta2], tau=tau), shapes)
    for number, (state, due) in enumerate(zip(ours, theirs, strict=True), 1):
        factor = (1 - beta1**number) / math.sqrt(1 - beta2**number)
        for name, tensor in due.items():
            step = state.adapter[name].astype(float) - ours_before[name]
            np.testing.assert_allclose(step / factor, tensor - before[name], rtol=2e-3, atol=3e-5)
        before, ours_before = due, state.adapter


def published(name, shapes, rate, beta1, beta2, tau):
    """Algorithm 2 of arXiv 2003.00295 in Python's own numbers, one coordinate at a time."""
    x = [(n, at, float(t[at])) for n, t in drawn(0, shapes).items() for at in np.ndindex(t.shape)]
    m, v = [0.0] * len(x), [tau * tau] * len(x)
    for seed in range(1, ROUNDS + 1):
        delta = drawn(seed, shapes)
        for k, (n, at, value) in enumerate(x):
            d = float(delta[n][at])
            m[k] = beta1 * m[k] + (1 - beta1) * d
            if name == "fedadagrad":
                v[k] = v[k] + d * d
            elif name == "fedadam":
                v[k] = beta2 * v[k] + (1 - beta2) * d * d
            else:
                way = (v[k] > d * d) - (v[k] < d * d)
                v[k] = v[k] - (1 - beta2) * d * d * way
            x[k] = n, at, value + rate * m[k] / (math.sqrt(v[k]) + tau)
        yield list(x)


@pytest.mark.parametrize("name", ADAPTIVE)
@given(shapes=shapes, rate=rates, beta1=shares, beta2=shares, tau=st.floats(1e-3, 1.0))
@settings(max_examples=25, deadline=None)
def test_every_round_is_the_published_one(name, shapes, rate, beta1, beta2, tau):
    betas = {"beta1": beta1} if name == "fedadagrad" else {"betas": [beta1, beta2]}
    ours = trajectory(built(name, learning_rate=rate, tau=tau, **betas), shapes)
    for state, due in zip(ours, published(name, shapes, rate, beta1, beta2, tau), strict=True):
        for tensor, at, value in due:
            assert state.adapter[tensor][at] == pytest.approx(value, rel=1e-3, abs=1e-4)


@pytest.mark.parametrize(
    ("name", "keys", "moved"),
    [
        # v = 1/4, then 1/4 + 4: 2 m / (sqrt v + 1/2)
        ("fedadagrad", {"learning_rate": 2.0, "tau": 0.5}, [2 * 2 / (math.sqrt(4.25) + 0.5)]),
        # m = 1, v = 1/4 * 1/2 + 1/2 * 4 = 2.125
        ("fedadam", {"learning_rate": 2.0, "betas": [0.5, 0.5], "tau": 0.5}, [2 / (math.sqrt(2.125) + 0.5)]),
        # delta^2 = 4 > v = 1/4, so v = 1/4 + 1/2 * 4 = 2.25
        ("fedyogi", {"learning_rate": 2.0, "betas": [0.5, 0.5], "tau": 0.5}, [2 / (1.5 + 0.5)]),
        # v = 2, then 1/2 * 2 + 2 = 3
        ("fedavgm", {"learning_rate": 0.5, "momentum": 0.5}, [1.0, 2.5]),
        # v = 2: 1/2 (2 + 1), then v = 3: 1/2 (2 + 3/2)
        ("nesterov", {"learning_rate": 0.5, "momentum": 0.5}, [1.5, 3.25]),
    ],
)
def test_the_first_rounds_worked_by_hand(name, keys, moved):
    server = built(name, **keys)
    state = start(method(server=server), Adapter({"w": [0.0]}))
    for due in moved:
        state = server.apply(state, update(Adapter({"w": [2.0]})))
        assert state.adapter["w"][0] == pytest.approx(due, rel=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_a_tensor_that_does_not_travel_keeps_its_moments_and_goes_on_with_them(name):
    """Alternating factors are two independent runs of the optimiser, each over its own rounds."""
    server, shapes = built(name), [(2, 3), (3, 2)]
    together = start(method(server=server), drawn(0, shapes))
    apart = {n: start(method(server=server), Adapter({n: t})) for n, t in drawn(0, shapes).items()}
    for seed in range(1, 7):
        name_now = f"t{seed % 2}"
        change = update(Adapter({name_now: drawn(seed, shapes)[name_now]}))
        resting = {part: kept[f"t{1 - seed % 2}"].tobytes() for part, kept in together.optimiser.items()}
        together = server.apply(together, change)
        apart[name_now] = server.apply(apart[name_now], change)
        for part, kept in together.optimiser.items():
            assert kept[f"t{1 - seed % 2}"].tobytes() == resting[part]
    for n, alone in apart.items():
        assert together.adapter[n].tobytes() == alone.adapter[n].tobytes()
        for part, kept in alone.optimiser.items():
            assert together.optimiser[part][n].tobytes() == kept[n].tobytes()


@pytest.mark.parametrize("name", NAMES)
def test_memory_has_the_adapters_layout_and_a_change_too_large_is_refused_by_name(name):
    server, first = built(name), drawn(0, [(2, 2)])
    asked = method(server=server)
    state = start(asked, first)
    for part in state.optimiser.values():
        assert {n: t.shape for n, t in part.items()} == {n: t.shape for n, t in first.items()}
    huge = update(Adapter({"t0": np.full((2, 2), 3e38)}))

    def three_rounds(state):
        for _ in range(3):
            state = next_state(asked, state, replace(huge, round=state.round), UNKNOWN_CONTEXT, Seeded(0))

    with np.errstate(all="raise"), pytest.raises(FederationError, match="tensor t0 not finite"):
        three_rounds(state)


@given(shapes=shapes, scale=st.floats(1e-6, 1e6))
@settings(max_examples=25, deadline=None)
def test_fedadams_step_of_a_coordinate_is_bounded_whatever_the_changes_are(shapes, scale):
    rate, beta2 = 0.1, 0.9
    server = built("fedadam", learning_rate=rate, betas=[0.0, beta2])
    before = drawn(0, shapes)
    for state in trajectory(server, shapes, scale):
        step = max(float(np.max(np.abs(state.adapter[n] - before[n]))) for n in before)
        assert step <= rate / math.sqrt(1 - beta2) * (1 + 1e-4) + 1e-6
        before = state.adapter


def test_no_momentum_is_the_plain_step():
    shapes = [(2, 3)]
    for name in ("fedavgm", "nesterov"):
        ours = trajectory(built(name, learning_rate=0.5, momentum=0.0), shapes)
        for one, two in zip(ours, trajectory(built("sgd", learning_rate=0.5), shapes), strict=True):
            assert bits(one.adapter) == bits(two.adapter)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "keys",
    [
        {"learning_rate": 0.0},
        {"learning_rate": float("nan")},
        {"learning_rate": True},
        {"momentum": 1.0},
        {"momentum": -0.1},
        {"beta1": 1.0},
        {"betas": [0.9, 1.0]},
        {"betas": [-0.1, 0.9]},
        {"betas": [0.9]},
        {"tau": 0.0},
        {"tau": float("inf")},
    ],
    ids=str,
)
def test_an_impossible_key_is_refused_by_its_name(name, keys):
    (key,) = keys
    config = plugins.module_of(plugins.SERVER, name).Config
    with pytest.raises(SettingsError, match=key):
        validated(config, keys, "the server optimiser")


def test_state_is_a_value():
    server = built("fedadam")
    state = start(method(server=server), drawn(0, [(2, 2)]))
    assert isinstance(state, ServerState)
    then = {part: bits(kept) for part, kept in state.optimiser.items()}
    server.apply(state, update(drawn(1, [(2, 2)])))
    assert {part: bits(kept) for part, kept in state.optimiser.items()} == then
