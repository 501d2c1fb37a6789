"""Noise that clients add: its distribution at any size, what is clipped before it, and whole rounds."""

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from scipy import stats
from tests.quadratic import Quadratic, bits, chosen, drawn, method
from tests.rounds.test_loop import Scripted

from shepherd.algorithms import fedavg
from shepherd.core import Adapter, Context, FromSystem, Payload, Poisson, Seeded, Turns, Update, chain
from shepherd.errors import QuorumNotMet, SettingsError, UpdateRefused
from shepherd.federation.summed import Summed
from shepherd.rounds import report_row, rounds, start
from shepherd.transforms import clip, fixed_point, skellam
from shepherd.transforms.fixed_point import levels

WIDE = {"w": (20_000, 2)}


def made(**keys):
    return skellam.build(skellam.Config(**keys))


def of_length(client, length, seed=0, shapes=WIDE):
    delta = drawn(seed, shapes)
    return Update(round=0, clients=(client,), delta=delta.times(length / delta.norm()), weight=1.0)


def quiet(rng, mean, shape):
    return np.zeros(shape, np.int64)


# --- the sampler


def chance(counts, expected):
    """The chance of counts as far from what is expected, by chi-square over bins of more than 5."""
    many = expected > 5
    counts, expected = counts[many], expected[many]
    return stats.chisquare(counts, expected * counts.sum() / expected.sum()).pvalue


@pytest.mark.parametrize("variance", [0.05, 0.7, 4.0, 60.0])
def test_small_noise_has_the_probabilities_of_scipy(variance):
    draws = skellam.skellam(np.random.default_rng(1), variance, (200_000,))
    values = np.arange(-60, 61)
    counts = np.bincount(draws + 60, minlength=121)
    assert chance(counts, len(draws) * stats.skellam.pmf(values, variance / 2, variance / 2)) > 1e-4


@pytest.mark.parametrize("mean", [2.0**24 - 1, 2.0**24 + 1, 1e9, 1e11, 1e12])
def test_large_poisson_draws_have_the_distribution_of_a_normal_one(mean):
    """Over 50 bins of equal probability; skewness moves one by 1e-5. scipy has none for a mean of 1e12."""
    draws = skellam.poisson(np.random.default_rng(2), mean, (100_000,))
    off = (draws - mean) / math.sqrt(mean)
    counts = np.bincount(np.searchsorted(stats.norm.ppf(np.arange(1, 50) / 50), off), minlength=50)
    assert chance(counts, np.full(50, 2000.0)) > 1e-4
    assert abs(off.mean()) < 5 / math.sqrt(len(off))
    assert off.var() == pytest.approx(1.0, abs=5 * math.sqrt(2 / len(off)))


def test_the_two_ways_to_draw_agree_where_both_are_right(monkeypatch):
    direct = skellam.poisson(np.random.default_rng(3), 400.0, (200_000,))
    monkeypatch.setattr(skellam, "DIRECT", 1.0)
    composed = skellam.poisson(np.random.default_rng(4), 400.0, (200_000,))
    edges = np.arange(320, 481, 4)
    table = [np.bincount(np.searchsorted(edges, each), minlength=42) for each in (direct, composed)]
    kept = [row[np.sum(table, axis=0) > 10] for row in table]
    assert stats.chi2_contingency(kept).pvalue > 1e-4


def test_an_arrival_that_is_late_is_counted_by_the_binomial(monkeypatch):
    """With half a deviation instead of ten, T is often beyond the mean, and both ways are used."""
    monkeypatch.setattr(skellam, "DIRECT", 1.0)
    monkeypatch.setattr(skellam, "BELOW", 0.5)
    draws = skellam.poisson(np.random.default_rng(5), 9.0, (100_000,))
    counts = np.bincount(draws, minlength=40)[:40]
    assert chance(counts, len(draws) * stats.poisson.pmf(np.arange(40), 9.0)) > 1e-4


@pytest.mark.parametrize("variance", [0.3, 5.0, 400.0])
def test_noise_beyond_the_tail_has_the_chance_that_is_said(variance):
    """By the cumulants' bound for the tail; the exact one is smaller."""
    edge = skellam.tail(variance)
    log = math.log(2) + stats.skellam.logpmf(edge + 1, variance / 2, variance / 2)
    assert log <= -skellam.TAIL_NATS + math.log(2)
    assert edge < 60 + 13 * math.sqrt(variance)


def test_the_sum_of_the_shares_is_the_noise_that_is_asked_for():
    """Three of three clients that change nothing: 40,000 numbers of standard deviation noise * norm."""
    part = made(norm=2.0, noise=0.5, honest=3)
    nothing = replace(of_length("c", 1.0), delta=drawn(0, WIDE).times(0.0))
    sent = [part.on_client(nothing, {}, FromSystem()).delta["w"] for _ in range(3)]
    noise = sum(sent) * 2.0 / levels(16)
    assert noise.std() == pytest.approx(1.0, rel=0.02)
    assert abs(noise.mean()) < 5 / math.sqrt(noise.size)
    assert stats.kstest((noise / noise.std()).ravel(), "norm").pvalue > 1e-4
    assert abs(np.corrcoef(sent[0].ravel(), sent[1].ravel())[0, 1]) < 0.03


# --- before the noise


@given(
    seed=st.integers(0, 2**32),
    length=st.floats(1e-3, 1e3),
    bits=st.integers(8, 24),
    shape=st.sampled_from([(1,), (7, 5), (2000,)]),
)
def test_the_codes_before_the_noise_are_never_longer_than_the_norm(seed, length, bits, shape):
    part = made(bits=bits)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(skellam, "skellam", quiet)
        update = of_length("c", length, seed, {"w": shape})
        coded = part.on_client(update, {}, Seeded(seed))
    codes = coded.delta["w"].astype(object)
    assert int((codes**2).sum()) <= levels(bits) ** 2
    assert int(abs(codes).sum()) <= levels(bits) ** 2
    if length < 0.5:  # and what is short enough is only rounded
        exact = update.delta["w"].astype(float) * levels(bits)
        assert np.abs(coded.delta["w"] - exact).max() < 1


def test_a_norm_of_which_float32_has_no_fractions_is_refused():
    """Clipped to 1e-44, four equal numbers are longer in float32, and no rounding makes them shorter."""
    with pytest.raises(ValidationError, match="norm"):
        skellam.Config(norm=1e-44)
    update = Update(round=0, clients=("c",), delta=Adapter({"w": np.full(4, 0.5, np.float32)}), weight=1.0)
    for norm in (1e-6, 1e6):
        for seed in range(20):
            sent = made(norm=norm, bits=16, noise=1e-6).on_client(update, None, Seeded(seed))
            assert skellam.squared_length(sent) <= levels(16) ** 2


def test_a_rounding_that_is_too_long_is_made_anew(monkeypatch):
    monkeypatch.setattr(skellam, "skellam", quiet)
    monkeypatch.setattr(skellam, "room", lambda most, size: float(most))  # as if rounding added nothing
    made_anew = []

    def counted(*arguments):
        made_anew.append(1)
        return fixed_point.rounded(*arguments)

    monkeypatch.setattr(skellam, "rounded", counted)
    for seed in range(20):
        coded = made(bits=8).on_client(of_length("c", 5.0, seed, {"w": (3,)}), {}, Seeded(seed))
        assert skellam.squared_length(coded) <= 127**2
    assert len(made_anew) > 20


@pytest.mark.parametrize("bits", [10, 16])
def test_what_is_left_of_the_norm_is_enough_nearly_always(bits):
    """The bound of conditional rounding: 200 roundings of 40,000 numbers, none of them longer."""
    most = levels(bits)
    short = of_length("c", skellam.room(most, 40_000), 1).delta
    update = Update(round=0, clients=("c",), delta=short, weight=1.0)
    rng = np.random.default_rng(0)
    longest = max(skellam.squared_length(fixed_point.rounded(update, 1.0, most, rng)) for _ in range(200))
    assert longest <= most**2


def test_a_change_that_is_not_finite_counts_as_zero_and_is_hidden_all_the_same():
    update = of_length("c", 1.0)
    broken = replace(update, delta=Adapter({"w": np.full((20_000, 2), np.nan)}))
    sent = made().on_client(broken, {}, Seeded(0))
    nothing = made().on_client(replace(update, delta=update.delta.times(0.0)), {}, Seeded(0))
    assert bits(sent.delta) == bits(nothing.delta)


def test_no_weight_and_no_metric_leaves():
    sent = made().on_client(replace(of_length("c", 1.0), weight=9.0, metrics={"loss": 2.0}), {}, Seeded(0))
    assert (sent.weight, dict(sent.metrics)) == (1.0, {})
    arrived = made().on_arrival(replace(sent, metrics={"loss": 2.0}), {})
    assert (arrived.weight, dict(arrived.metrics)) == (1.0, {})


def test_codes_and_sums_are_within_what_is_said_and_more_is_refused():
    part = made(noise=2.0, honest=5)
    sent = part.on_client(of_length("c", 1.0), {}, FromSystem())
    assert np.abs(sent.delta["w"]).max() <= part.largest_code < 2**20
    wrong = replace(sent, delta=Payload({"w": np.full((20_000, 2), part.largest_code + 1)}))
    with pytest.raises(UpdateRefused, match="tensor w has a whole number beyond"):
        part.on_arrival(wrong, {})
    with pytest.raises(UpdateRefused, match=r"it has norm .*, above the .* noise included"):
        part.on_arrival(replace(wrong, clients=("c", "d")), {})


@given(
    bits=st.integers(6, 20),
    noise=st.floats(0.01, 3.0),
    honest=st.integers(1, 5),
    clients=st.integers(1, 6),
    size=st.integers(1, 400),
    seed=st.integers(0, 2**32 - 1),
)
def test_no_sum_of_clients_that_keep_to_the_run_file_is_too_long(bits, noise, honest, clients, size, seed):
    """Also where the noise is a fraction of a step, and its squares have heavy tails."""
    part, shapes = made(bits=bits, noise=noise, honest=honest), {"w": (size, 1)}
    if skellam.room(levels(bits), size) < levels(bits) / 2:
        return
    sent = [part.on_client(of_length(f"{n}", 2.0, 1, shapes), {}, Seeded(seed + n)) for n in range(clients)]
    total = Payload({"w": sum(each.delta["w"] for each in sent)})
    names = tuple(f"{n}" for n in range(clients))
    part.on_arrival(Update(round=0, clients=names, delta=total, weight=1.0), {})


def test_one_client_cannot_move_the_mean_by_more_than_norm_and_noise():
    part = made(noise=1.0, honest=4)
    sent = [part.on_client(of_length(f"{n}", 1.0, n), {}, Seeded(n)) for n in range(4)]
    pushed = sent[0].delta["w"] + 3 * part.largest_code
    total = Payload({"w": pushed + sum(each.delta["w"] for each in sent[1:])})
    names = tuple(f"{n}" for n in range(4))
    honest = Payload({"w": sum(each.delta["w"] for each in sent)})
    assert part.on_arrival(Update(round=0, clients=names, delta=honest, weight=1.0), {}).weight == 4.0
    with pytest.raises(UpdateRefused, match=r"it has norm \d+"):
        part.on_arrival(Update(round=0, clients=names, delta=total, weight=1.0), {})


def test_bits_that_rounding_would_swallow_are_refused_before_the_first_round():
    context = Context(layout={"a": (1000, 1000), "b": (3000, 1000)})
    with pytest.raises(SettingsError, match=r"4,000,000 numbers.*set bits = 12 or more"):
        made(bits=11).init(context)
    made(bits=12).init(context)
    with pytest.raises(UpdateRefused, match="bits = 4 are too few for the 40,000"):
        made(bits=4).on_client(of_length("c", 1.0), {}, Seeded(0))
    with pytest.raises(SettingsError, match="lower bits"):
        made(noise=1e4, bits=24)


def test_nothing_may_check_an_update_that_has_noise_in_it():
    with pytest.raises(SettingsError, match="remove the first"):
        chain(clip.build(clip.Config()), made())


def test_it_says_that_the_draw_of_cohorts_gains_nothing():
    spent = made(noise=0.7, bits=10).mechanism.spent(Poisson(chance=0.1), 12)
    assert (spent.noise, spent.sampling, spent.steps, spent.levels) == (0.7, Turns(every=1), 12, 511)


# --- rounds


def run(federation, transform, until=2):
    loop = rounds(
        method(transform=transform),
        federation,
        start(method(transform=transform), drawn(0)),
        until=until,
        select=chosen("all"),
        quorum=1.0,
        seed=0,
    )
    return list(loop)


def test_a_sum_and_single_updates_give_the_same_rounds():
    part = made(noise=0.3, norm=10.0)
    alone = run(Quadratic(fedavg.ALGORITHM, part), part)
    merged = run(Summed(federation=Quadratic(fedavg.ALGORITHM, part), ring_bits=32), part)
    for (one, _), (other, report) in zip(alone, merged, strict=True):
        assert max(np.abs(one.adapter[n] - t).max() for n, t in other.adapter.items()) < 1e-5
        assert report_row(report) == {"round": report.round}


@pytest.mark.parametrize("absent", [1, 2, 4])
def test_a_round_with_too_few_shares_of_noise_gives_nothing(absent):
    """Four clients, and `honest` is 3."""
    part = made(norm=10.0)

    class Absent(Quadratic):
        def run(self, broadcast, cohort):
            return super().run(broadcast, cohort[absent:])

    federation = Absent(fedavg.ALGORITHM, part)
    if absent == 1:
        ((_, report),) = run(federation, part, until=1)
        assert set(report.weights) == {"c1", "c2", "c3"}
        return
    with pytest.raises(QuorumNotMet, match="the shares of noise of at least 3"):
        run(federation, part, until=1)


def test_a_merged_update_is_taken_only_from_a_federation_that_merges():
    part = made(norm=10.0, honest=1)
    sent = part.on_client(
        of_length("c0", 1.0, shapes={n: t.shape for n, t in drawn(0).items()}), {}, Seeded(0)
    )
    both = replace(sent, clients=("c0", "c1"))
    with pytest.raises(QuorumNotMet):
        run(Scripted(lambda broadcast, cohort: iter([both]), clients=2), part, until=1)


@pytest.mark.parametrize(("sites", "honest", "size", "due"), [(3, 3, 100_000, 27), (10, 7, 1_000_000, 21)])
def test_how_far_one_site_may_move_the_mean_is_as_documented(sites, honest, size, due):
    """Across the noise, in multiples of the norm (docs/silos.md)."""
    most = levels(16)
    variance = most**2 / honest
    drawn = np.sqrt(size * sites * variance) / most / sites
    longest = 1.0 + skellam.noise_length(sites * variance, size) / most / sites
    assert round(np.sqrt(longest**2 - drawn**2)) == due
