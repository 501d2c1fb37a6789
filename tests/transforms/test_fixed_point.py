"""Whole numbers: what rounding does to a change, and what comes back of one update and of a sum."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from tests.quadratic import Quadratic, bits, chosen, drawn, method, update_of

from shepherd.algorithms import fedavg
from shepherd.core import Adapter, Payload, Seeded, Update, chain
from shepherd.errors import SettingsError, UpdateRefused
from shepherd.rounds import rounds, start
from shepherd.rounds.weights import Allowed
from shepherd.transforms import clip, fedrot, fixed_point
from shepherd.transforms.clip import length_of
from shepherd.transforms.fixed_point import WEIGHT, levels, rounded

SHAPES = {"a": (3, 7), "b": (11,)}
SIZE = 32


def made(**keys):
    return fixed_point.build(fixed_point.Config(**keys))


def of_length(client, length, seed=0, weight=1.0):
    delta = drawn(seed, SHAPES)
    return Update(round=0, clients=(client,), delta=delta.times(length / delta.norm()), weight=weight)


def summed(updates):
    """The sum of coded updates, as a server of secure sums gets it."""
    parts = [
        {name: sum(part[name] for part in each) for name in each[0]}
        for each in ([u.delta for u in updates], [u.extra for u in updates])
    ]
    names = tuple(name for update in updates for name in update.clients)
    delta, extra = map(Payload, parts)
    return Update(round=0, clients=names, weight=float(len(names)), delta=delta, extra=extra)


def flat(tensors):
    return np.concatenate([np.asarray(tensors[name], float).ravel() for name in sorted(tensors)])


# --- rounding


@pytest.mark.parametrize("norm", [0.0, 1e-320, 1e-44, 1e-7, 1e7, float("nan")])
def test_a_norm_of_which_float32_has_no_fractions_is_refused(norm):
    """A step of 1e-320 / 32767 is 0, and 0 / 0 steps would be a code beyond every bound."""
    with pytest.raises(ValidationError, match="norm"):
        fixed_point.Config(norm=norm)


@given(
    seed=st.integers(0, 2**32),
    length=st.floats(1e-6, 1e6),
    norm=st.floats(1e-3, 1e3),
    bits=st.integers(2, 32),
    weight=st.floats(1e-3, 1e3),
)
def test_codes_are_within_their_bits_and_less_than_a_step_from_what_was_clipped(
    seed, length, norm, bits, weight
):
    update = of_length("c", length, seed, weight)
    sent = made(norm=norm, bits=bits, largest_weight=100.0).on_client(update, {}, Seeded(seed))
    most = levels(bits)
    code = int(sent.extra[WEIGHT][0])
    assert code == max(1, round(min(weight / 100.0, 1.0) * most))
    exact = flat(clip.clipped(update, norm).delta) * code / norm
    assert all(tensor.dtype == np.int64 for tensor in sent.delta.values())
    assert np.abs(flat(sent.delta)).max() <= most
    assert np.abs(flat(sent.delta) - exact).max() < 1 + 1e-6


@pytest.mark.parametrize("value", [0.25, -0.25, 3.7, -2.001, 5.0, 0.0])
def test_rounding_is_unbiased_and_keeps_whole_numbers(value):
    """100,000 draws: the mean is within 5 of its standard errors."""
    update = Update(round=0, clients=("c",), delta=Adapter({"x": np.full(100_000, value)}), weight=1.0)
    codes = rounded(update, 1.0, 127, np.random.default_rng(0)).delta["x"]
    value = float(np.float32(value))
    part = value - np.floor(value)
    assert set(np.unique(codes)) <= {np.floor(value), np.ceil(value)}
    assert abs(codes.mean() - value) <= 5 * np.sqrt(part * (1 - part) / len(codes))


def test_the_longest_number_never_leaves_its_bits():
    update = Update(round=0, clients=("c",), delta=Adapter({"x": [0.3]}), weight=1.0)
    norm = float(np.float32(0.3))
    for seed in range(200):
        assert abs(int(made(norm=norm, bits=32).on_client(update, {}, Seeded(seed)).delta["x"][0])) < 2**31


# --- decoding


@given(
    seed=st.integers(0, 2**32),
    clients=st.integers(1, 9),
    bits=st.integers(6, 32),
    weights=st.lists(st.floats(0.5, 200.0), min_size=9, max_size=9),
)
def test_a_sum_is_the_weighted_mean_up_to_rounding(seed, clients, bits, weights):
    """Each number is off by less than one step of each client, over the sum of the weights."""
    part = made(bits=bits, largest_weight=100.0)
    updates = [of_length(f"c{k}", 0.1 * (k + 1), seed + k, weights[k]) for k in range(clients)]
    sent = [part.on_client(update, {}, Seeded(seed + k)) for k, update in enumerate(updates)]
    mean = part.on_arrival(summed(sent) if clients > 1 else sent[0], {})
    counted = np.array([int(each.extra[WEIGHT][0]) for each in sent]) / levels(bits)
    exact = sum(w * flat(u.delta) for w, u in zip(counted, updates, strict=True)) / counted.sum()
    step = 1 / levels(bits)
    assert np.abs(flat(mean.delta) - exact).max() <= clients * step / counted.sum() + 1e-6
    assert mean.weight == pytest.approx(100.0 * counted.sum())
    assert np.abs(np.minimum(weights[:clients], 100.0) - 100 * counted).max() <= 50 * step + 100 * step
    after, _ = part.on_server(mean, {}, Seeded(0))
    assert WEIGHT not in after.extra


@given(seed=st.integers(0, 2**32), clients=st.integers(1, 9), bits=st.integers(2, 32))
def test_with_equal_weights_a_sum_is_the_plain_mean_up_to_a_step(seed, clients, bits):
    part = made(bits=bits)
    updates = [of_length(f"c{k}", 0.1 * (k + 1), seed + k) for k in range(clients)]
    sent = [part.on_client(update, {}, Seeded(seed + k)) for k, update in enumerate(updates)]
    mean = part.on_arrival(summed(sent), {})
    exact = np.mean([flat(update.delta) for update in updates], axis=0)
    assert np.abs(flat(mean.delta) - exact).max() <= (1 + 1e-6) / levels(bits) + 1e-6
    assert (mean.weight, len(mean.clients)) == (float(clients), clients)


@given(seed=st.integers(0, 2**32), length=st.floats(0.1, 3.0), bits=st.integers(2, 32))
def test_what_is_decoded_is_never_longer_than_the_norm_nor_further_from_it(seed, length, bits):
    part = made(bits=bits)
    update = of_length("c", length, seed)
    sent = part.on_client(update, {}, Seeded(seed))
    arrived = part.on_arrival(sent, {})
    assert length_of(arrived) <= 1.0
    exact, codes = flat(clip.clipped(update, 1.0).delta), flat(sent.delta) / levels(bits)
    assert np.linalg.norm(flat(arrived.delta) - exact) <= np.linalg.norm(codes - exact) + 1e-6


def test_an_extra_is_encoded_with_the_change_and_bounded_together():
    update = replace(of_length("c", 3.0), extra=Adapter({"e": [4.0]}))
    part = made(bits=24)
    arrived = part.on_arrival(part.on_client(update, {}, Seeded(0)), {})
    assert length_of(arrived) == pytest.approx(1.0, rel=1e-5)
    assert float(arrived.extra["e"][0]) == pytest.approx(0.8, rel=1e-5)


# --- what is refused


def refused(update, **keys):
    with pytest.raises(UpdateRefused) as refusal:
        made(**keys).on_arrival(update, {})
    return str(refusal.value)


def test_what_no_client_sends_is_refused_by_its_tensor():
    sent = made().on_client(of_length("c", 0.5), {}, Seeded(0))
    wide = {**sent.delta, "b": np.full(11, levels(22) + 1)}
    assert "tensor b has a whole number beyond +-2097151" in refused(replace(sent, delta=Payload(wide)))
    small = {**sent.delta, "a": sent.delta["a"].astype(np.int32)}
    assert "tensor a has dtype int32, not int64" in refused(replace(sent, delta=Payload(small)))
    assert "tensor a has dtype float32" in refused(of_length("c", 0.5))
    most = {name: np.full(shape, levels(22)) for name, shape in SHAPES.items()}
    assert "its change has norm 5.65685, above the 1" in refused(replace(sent, delta=Payload(most)))
    least = {"a": sent.delta["a"], "b": np.full(11, np.iinfo(np.int64).min)}
    assert "tensor b has a whole number beyond" in refused(replace(sent, delta=Payload(least)))


def test_a_client_cannot_weigh_otherwise_than_it_says():
    part = {"largest_weight": 100.0}
    sent = made(**part).on_client(of_length("c", 0.5, weight=10.0), {}, Seeded(0))
    assert "its weight 20 is not the one" in refused(replace(sent, weight=20.0), **part)
    assert "how much it weighs" in refused(replace(sent, extra=Payload()), **part)
    none = replace(sent, extra=Payload({WEIGHT: np.array([0])}), clients=("c", "d"))
    assert "how much it weighs" in refused(none, **part)
    heavy = made(**part).on_client(of_length("c", 0.5, weight=1e9), {}, Seeded(0))
    assert made(**part).on_arrival(heavy, {}).weight == 100.0


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_not_finite_does_not_leave(value):
    update = replace(of_length("c", 0.5), extra=Adapter({"e": [value]}))
    with pytest.raises(UpdateRefused, match="tensor e is not finite"):
        made().on_client(update, {}, Seeded(0))


def test_what_is_encoded_already_is_refused_by_its_tensor():
    update = replace(of_length("c", 0.5), extra=Payload({"mask": np.array([1, 0], np.int8)}))
    with pytest.raises(UpdateRefused, match="tensor mask has dtype int8"):
        made().on_client(update, {}, Seeded(0))


# --- in a chain, and in rounds


def test_only_the_last_of_a_chain_may_send_whole_numbers_and_its_norm_is_not_above_an_earlier_one():
    clipped = clip.build(clip.Config(norm=0.5))
    assert chain(clipped, made(norm=0.5, bits=8)).largest_code == 127
    for wrong in ((made(), clipped), (made(), made())):
        with pytest.raises(SettingsError, match="list the one that sends them last"):
            chain(*wrong)
    with pytest.raises(SettingsError, match="give both the same norm"):
        chain(clipped, made(norm=1.0))


def run(transform, until=3, state=None, **keys):
    loop = rounds(
        method(transform=transform),
        Quadratic(fedavg.ALGORITHM, transform, **keys),
        state or start(method(transform=transform), drawn(0)),
        until=until,
        select=chosen("all"),
        quorum=1.0,
        seed=0,
    )
    return list(loop)


@pytest.mark.parametrize("bits", [6, 16, 22])
@pytest.mark.parametrize("length", [0.5, 100.0])
def test_a_chain_with_a_clip_of_the_same_norm_passes_its_own_checks(bits, length):
    """Rounding lengthens a change that was clipped; 100 is above every change here."""
    both = chain(
        fedrot.build(fedrot.Config()),
        clip.build(clip.Config(norm=length)),
        made(norm=length, bits=bits),
    )
    assert not any(report.failures for _, report in run(both))


@pytest.mark.parametrize("keys", [{}, {"largest_weight": 4.0}])
def test_rounds_differ_from_plain_ones_by_rounding_alone(keys):
    """Clients weigh 1 to 4 by their size, or the same; each round adds a step of rounding at most."""
    part = made(norm=100.0, bits=28, **keys)
    coded = run(part)[-1][0].adapter
    plain = run(chain() if keys else replace(chain(), on_client=lambda u, p, d: replace(u, weight=1.0)))
    step = 100.0 / levels(28)
    largest = max(np.abs(coded[n] - t).max() for n, t in plain[-1][0].adapter.items())
    assert 0 < largest <= 3 * 4 * step + 3e-6
    reports = [report for _, report in run(part)]
    expected = [1.0, 2.0, 3.0, 4.0] if keys else [1.0] * 4
    assert list(reports[0].weights.values()) == pytest.approx(expected, rel=1e-6)


def test_the_same_seed_gives_the_same_codes_and_another_client_others():
    update = update_of("c", 0)
    one, same, other = (made().on_client(update, {}, Seeded(seed)) for seed in (1, 1, 2))
    assert bits(one.delta) == bits(same.delta) != bits(other.delta)


def test_a_weight_that_is_not_asked_for_is_a_failure_as_without_it():
    part = made(largest_weight=4.0)
    loop = rounds(
        method(transform=part),
        Quadratic(fedavg.ALGORITHM, part),
        start(method(transform=part), drawn(0)),
        until=1,
        select=chosen("all"),
        quorum=0.5,
        seed=0,
        allow=lambda client: Allowed(least=1.0, most=3.0, by="the test"),
    )
    (_, report) = next(loop)
    assert set(report.failures) == {"c3"}
