"""Bounds of epsilon against published values and against mechanisms whose epsilon is known."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom, norm
from sklearn.metrics import roc_auc_score

from shepherd.audit import estimate
from shepherd.errors import SettingsError, StatisticsError

N = 10_000


def normal_scores(shift):
    """N evenly spaced quantiles of a normal distribution, as in the tests of jax_privacy.auditing."""
    return norm.ppf((np.arange(N) + 0.5) / N) + shift


def thresholds(shift):
    """(guesses, right ones) at each threshold on the concave hull of the ROC curve, and their number."""
    included, excluded = normal_scores(shift), normal_scores(0)
    at = np.append(np.union1d(included, excluded), np.inf)
    hull: list[tuple[int, int]] = []
    for point in zip(np.searchsorted(included, at), np.searchsorted(excluded, at), strict=True):
        while len(hull) > 1 and (hull[-1][1] - hull[-2][1]) * (point[0] - hull[-1][0]) <= (
            point[1] - hull[-1][1]
        ) * (hull[-1][0] - hull[-2][0]):
            hull.pop()
        hull.append((int(point[0]), int(point[1])))
    return [(2 * N - missed - kept, N - missed) for missed, kept in hull], len(hull)


@pytest.mark.parametrize(("shift", "value"), [(1, 1.13346), (2, 2.311945), (4, 4.395568)])
def test_one_run_as_published(shift, value):
    """Some threshold refutes a slightly smaller epsilon than the published bound, and none a larger one."""
    counts, number = thresholds(shift)

    def refuted(epsilon):
        p = (estimate.one_run_p(2 * N, *each, epsilon, 1e-6) for each in counts if each[0])
        return any(each <= 0.05 / number for each in p)

    assert refuted(value * (1 - 1e-4))
    assert not refuted(value * (1 + 1e-4))


@pytest.mark.parametrize(("shift", "value"), [(1, 2.164749), (2, 4.7218075), (4, 9.133752)])
def test_one_run_of_gaussian_noise_as_published(shift, value):
    from dp_accounting import get_sigma_gaussian

    counts, number = thresholds(shift)

    def refuted(epsilon):
        mu = 1 / get_sigma_gaussian(epsilon, 1e-6)
        return any(estimate.refutes_gaussian(2 * N, *each, mu, 0.05 / number) for each in counts if each[0])

    assert refuted(value * (1 - 1e-4))
    assert not refuted(value * (1 + 1e-4))


def test_a_bound_is_where_the_p_value_crosses():
    found = estimate.epsilon_one_run(200, 80, 70, delta=1e-5)
    assert estimate.one_run_p(200, 80, 70, found, 1e-5) == pytest.approx(0.05, rel=1e-3)
    mu = 1.3
    assert estimate.refutes_gaussian(200, 80, 70, mu, 0.05) == (
        estimate.gaussian_epsilon(mu, 1e-5) < estimate.epsilon_one_run_gaussian(200, 80, 70, delta=1e-5)
    )


@pytest.mark.parametrize(
    ("m", "one_run", "gaussian", "retrained"),
    [
        (20, 0.68, 1.30, 0.49),
        (50, 1.72, 3.36, 1.56),
        (100, 2.46, 4.71, 2.30),
        (200, 3.17, 5.92, 3.02),
        (500, 4.08, 7.42, 3.95),
        (1000, 4.75, 8.49, 4.64),
    ],
)
def test_what_a_perfect_attack_reaches_as_published(m, one_run, gaussian, retrained):
    """Half of the canaries are guessed, all of them right, at the best of three thresholds."""
    half, each = m // 2, {"delta": 1e-5, "significance": 0.05 / 3}
    assert estimate.epsilon_one_run(m, half, half, **each) == pytest.approx(one_run, abs=0.006)
    assert estimate.epsilon_one_run_gaussian(m, half, half, **each) == pytest.approx(gaussian, abs=0.006)
    assert estimate.epsilon_clopper_pearson(half, half, 0, half, **each) == pytest.approx(
        retrained, abs=0.006
    )
    assert estimate.ceiling(half, half, 1e-5).clopper_pearson == pytest.approx(retrained, abs=0.006)


@given(
    canaries=st.integers(1, 60),
    data=st.data(),
    epsilon=st.floats(0, 6),
    delta=st.sampled_from([0.0, 1e-6, 1e-3, 0.1, 1.0]),
)
def test_the_p_value_is_the_papers_sum(canaries, data, epsilon, delta):
    guesses = data.draw(st.integers(1, canaries))
    correct = data.draw(st.integers(0, guesses))
    right = 1 / (1 + math.exp(-epsilon))
    total, most = 0.0, 0.0
    for missed in range(1, correct + 1):
        total += binom.pmf(correct - missed, guesses, right)
        most = max(most, total / missed)
    expected = min(1.0, binom.sf(correct - 1, guesses, right) + 2 * canaries * delta * most)
    assert estimate.one_run_p(canaries, guesses, correct, epsilon, delta) == pytest.approx(expected, abs=1e-9)


@given(epsilon=st.floats(0.1, 6), delta=st.floats(1e-8, 1e-2))
def test_epsilon_of_gaussian_noise_by_the_accountant(epsilon, delta):
    from dp_accounting import get_sigma_gaussian

    assert estimate.gaussian_epsilon(1 / get_sigma_gaussian(epsilon, delta), delta) == pytest.approx(
        epsilon, rel=1e-3
    )


@pytest.mark.parametrize("epsilon", [0.0, 1.0, 3.0])
def test_a_mechanism_with_this_epsilon_seldom_exceeds_it(epsilon):
    """Randomised response, whose epsilon is exact, is caught too often in at most 5% of runs."""
    rng = np.random.default_rng(7)
    above = 0
    for _ in range(100):
        coins = rng.random(200) < 0.5
        told = coins ^ (rng.random(200) > 1 / (1 + math.exp(-epsilon)))
        above += estimate.bounds(told + rng.random(200) / 2, coins, 1e-6).one_run > epsilon
    assert above <= binom.isf(1e-4, 100, 0.05)


def test_gaussian_noise_seldom_exceeds_its_own_epsilon_and_less_noise_does():
    rng, true = np.random.default_rng(3), estimate.gaussian_epsilon(1.0, 1e-5)
    found = []
    for _ in range(20):
        coins = rng.random(1000) < 0.5
        found.append(estimate.bounds(coins + rng.standard_normal(1000), coins, 1e-5).gaussian)
    assert sum(each > true for each in found) <= binom.isf(1e-4, 20, 0.05)
    assert np.median(found) > 0.8
    coins = rng.random(1000) < 0.5
    assert estimate.bounds(coins + 0.1 * rng.standard_normal(1000), coins, 1e-5).one_run > true


@settings(max_examples=25)
@given(st.integers(2, 60), st.integers(2, 60), st.integers(0, 2**31))
def test_no_score_is_above_the_ceiling(included, excluded, seed):
    rng = np.random.default_rng(seed)
    coins = rng.permutation([True] * included + [False] * excluded)
    found = estimate.bounds(rng.standard_normal(len(coins)) + 3 * coins, coins, 1e-5)
    most = estimate.ceiling(included, excluded, 1e-5)
    assert (found.canaries, found.included) == (included + excluded, included)
    for name in ("one_run", "gaussian", "clopper_pearson"):
        assert 0.0 <= getattr(found, name) <= getattr(most, name)


@settings(max_examples=25)
@given(st.integers(1, 40), st.integers(1, 40), st.floats(-1, 6), st.integers(0, 2**31))
def test_auc_is_that_of_scikit_learn_inside_its_interval(members, others, shift, seed):
    rng = np.random.default_rng(seed)
    inside, outside = rng.normal(shift, 1, members).round(1), rng.normal(0, 1, others).round(1)
    found = estimate.auc(inside, outside)
    labels = [1] * members + [0] * others
    assert found.value == pytest.approx(roc_auc_score(labels, np.concatenate([inside, outside])))
    assert 0.0 <= found.low <= found.value <= found.high <= 1.0
    assert found.low < found.high


def test_intervals_hold_the_truth_as_often_as_they_say():
    rng, shift = np.random.default_rng(5), 1.0
    area, found_share = norm.cdf(shift / math.sqrt(2)), norm.sf(norm.isf(0.01) - shift)
    held = np.zeros(2)
    for _ in range(120):
        found = estimate.attack(rng.normal(shift, 1, 150), rng.normal(0, 1, 200))
        share = found.tpr[0]
        held += [found.auc.low <= area <= found.auc.high, share.low <= found_share <= share.high]
    assert (held >= 120 - binom.isf(1e-4, 120, 0.05)).all()


def test_a_rate_that_so_few_others_cannot_show_is_not_given():
    members, others = np.linspace(0, 2, 300), np.linspace(-1, 1, 999)
    found = estimate.attack(members, others)
    assert found.tpr[0] is not None
    assert found.tpr[1] is None
    assert found.row()["tpr_0.001"] is None
    assert estimate.attack(members, np.linspace(-1, 1, 1000)).tpr[1].value == pytest.approx(0.5, abs=0.01)
    apart = estimate.attack(np.ones(50), np.zeros(200)).tpr[0]
    assert apart.value == 1.0
    assert apart.low < 1.0


def test_exposure_is_that_of_the_rank_among_canaries_left_out():
    assert estimate.exposures([10.0, 0.5, -1.0], range(7)).tolist() == pytest.approx(
        [3.0, math.log2(8 / 7), 0.0]
    )
    rng = np.random.default_rng(1)
    none = estimate.exposures(rng.standard_normal(4000), rng.standard_normal(1000))
    assert none.mean() == pytest.approx(1 / math.log(2), abs=0.1)


def test_what_cannot_be_estimated_is_one_sentence():
    with pytest.raises(StatisticsError, match="no scores"):
        estimate.bounds([], [], 1e-5)
    with pytest.raises(StatisticsError, match="not a finite number"):
        estimate.attack([1.0], [math.nan])
    for delta in (0.0, 1.0, math.nan):
        with pytest.raises(SettingsError, match="delta"):
            estimate.bounds([1.0, 0.0], [True, False], delta)
