"""Scores, differences and their intervals: closed forms, scipy, permutations, and simulated coverage."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats

from shepherd.errors import StatisticsError
from shepherd.evaluate import loss
from shepherd.evaluate.draws import draws
from shepherd.evaluate.statistics import (
    Compared,
    Interval,
    difference,
    holm,
    percentiles,
    relative,
    sample,
    score,
    two_sided,
)

Floats = NDArray[np.float64]


def bounds(found: Interval) -> tuple[float, float]:
    return found.low, found.high


def test_the_statistic_is_the_held_out_loss() -> None:
    rng = np.random.default_rng(0)
    names = rng.choice(["qa", "poem", "list"], size=60).tolist()
    counts, sums = rng.integers(1, 50, 60), rng.random(60) * 90
    known = loss.summarise(sums, counts, names, {})
    drawn = draws(names)
    assert score(sums / counts, drawn, counts).value == pytest.approx(known.loss)
    by_category = {name: score(sums / counts, drawn.only(name), counts).value for name in set(names)}
    assert by_category == pytest.approx(dict(known.category))


def test_against_scipys_bootstrap() -> None:
    values = np.random.default_rng(1).exponential(size=300)
    ours = score(values, draws(["all"] * 300))
    theirs = stats.bootstrap(
        (values,), np.mean, method="percentile", n_resamples=10_000, rng=np.random.default_rng(2)
    )
    assert bounds(ours) == pytest.approx(tuple(theirs.confidence_interval), abs=0.15 * theirs.standard_error)


def test_paired_differences_against_scipys_bootstrap() -> None:
    rng = np.random.default_rng(3)
    base = rng.normal(size=300)
    a, b = base + rng.normal(0.1, 0.3, 300), base
    theirs = stats.bootstrap(
        (a, b),
        lambda x, y, axis: np.mean(x - y, axis=axis),
        paired=True,
        method="percentile",
        rng=np.random.default_rng(4),
    )
    ours = difference(a, b, draws(["all"] * 300)).difference
    assert bounds(ours) == pytest.approx(tuple(theirs.confidence_interval), abs=0.15 * theirs.standard_error)


@pytest.mark.parametrize("n", [3, 10, 200])
def test_the_standard_error_of_a_mean_is_unbiased_also_of_few(n: int) -> None:
    values = np.random.default_rng(n).normal(size=n)
    found = sample(values, draws(["all"] * n, resamples=40_000)).resampled.std()
    assert found == pytest.approx(values.std(ddof=1) / math.sqrt(n), rel=0.03)


def test_the_interval_of_a_proportion() -> None:
    right = np.arange(400) < 120
    half = 1.96 * math.sqrt(0.3 * 0.7 / 399)
    assert bounds(score(right, draws(["all"] * 400))) == pytest.approx((0.3 - half, 0.3 + half), abs=0.004)


def test_strata_leave_out_the_spread_between_categories() -> None:
    names = ["a"] * 20 + ["b"] * 80
    values = np.where(np.arange(100) < 20, 0.0, 10.0) + np.tile([1.0, -1.0], 50)
    arm = sample(values, draws(names, resamples=40_000))
    assert arm.value == 5.0  # each category once
    assert arm.resampled.std() == pytest.approx(0.5 * math.sqrt(1 / 19 + 1 / 79), rel=0.03)


def test_categories_of_one_question_spread_among_themselves() -> None:
    values = np.random.default_rng(0).normal(size=8)
    names = ["a", "b", "c", "d", "e", "f", "many", "many"]
    arm = sample(values, draws(names, resamples=40_000), np.arange(1, 9))
    alone, many = values[:6], values[6:]
    assert arm.value == pytest.approx(6 / 7 * alone.mean() + 1 / 7 * (7 * many[0] + 8 * many[1]) / 15)
    merged = 6 / 7 * alone.std(ddof=1) / math.sqrt(6)
    # one of the two is drawn: half their distance
    pair = 1 / 7 * abs(many[0] - many[1]) / 2
    assert arm.resampled.std() == pytest.approx(math.hypot(merged, pair), rel=0.03)


def test_weights_by_the_delta_method() -> None:
    rng = np.random.default_rng(5)
    values, weights = rng.normal(3, 1, 400), rng.integers(1, 40, 400)
    arm = sample(values, draws(["all"] * 400), weights)
    mean = (weights * values).sum() / weights.sum()
    assert arm.value == pytest.approx(mean)
    spread = math.sqrt((weights**2 * (values - mean) ** 2).sum()) / weights.sum()
    assert arm.resampled.std() == pytest.approx(spread, rel=0.04)


def test_a_ratio_by_the_delta_method() -> None:
    rng = np.random.default_rng(6)
    base = rng.random(500)
    a, b = 1 + base + 0.1 * rng.random(500), 2 + base
    found = relative(a, b, draws(["all"] * 500))
    assert found.value == pytest.approx(a.mean() / b.mean())
    half = 1.96 * (a / a.mean() - b / b.mean()).std() / math.sqrt(500) * found.value
    assert bounds(found) == pytest.approx((found.value - half, found.value + half), abs=half / 15)


def test_a_ratio_over_nothing_has_no_number() -> None:
    drawn = draws(["all"] * 50)
    some, none = np.arange(50) < 25, np.zeros(50)
    assert relative(some, none, drawn).row() == {"value": None, "low": None, "high": None}
    assert relative(none, none, drawn).row() == {"value": None, "low": None, "high": None}
    rare = relative(some, np.arange(50) < 1, drawn)
    assert rare.value == 25
    assert math.isfinite(rare.low)
    assert rare.row()["high"] is None
    seeds = draws(["all"] * 50, seeds=3)
    assert relative(np.stack([some] * 3), np.arange(50) < 1, seeds).low == pytest.approx(rare.low, rel=0.1)


@pytest.mark.parametrize(("right", "questions"), [(0, 10), (1, 10), (0, 1), (1, 400)])
def test_all_right_or_all_wrong_is_the_exact_bound(right: int, questions: int) -> None:
    found = score(np.full(questions, right), draws(["all"] * questions))
    exact = stats.binomtest(right * questions, questions).proportion_ci(0.95, method="exact")
    assert bounds(found) == pytest.approx((exact.low, exact.high))
    assert found.value == right


def coverage(questions: dict[str, int], *, seeds: int = 1, by_seed: float = 0.0, noise: float = 1.0) -> float:
    """How often the interval of a difference holds the true one, over 400 small data sets."""
    rng = np.random.default_rng(7)
    names = [name for name, count in questions.items() for _ in range(count)]
    drawn = draws(names, seeds=seeds, resamples=1000)
    means = {name: float(place) for place, name in enumerate(questions)}
    centre = np.array([means[name] for name in names])
    held = 0
    for _ in range(400):
        apart = rng.normal(size=len(names)) + by_seed * rng.normal(size=(seeds, 1)) + centre
        common = rng.normal(size=(seeds, len(names)))
        found = difference(
            common + apart + noise * rng.normal(size=(seeds, len(names))), common, drawn
        ).difference
        held += found.low <= np.mean(list(means.values())) <= found.high
    return held / 400


def test_coverage_over_questions() -> None:
    assert coverage({"a": 20, "b": 40, "c": 25}) == pytest.approx(0.95, abs=0.025)


@pytest.mark.parametrize("by_seed", [0.0, 0.2, 2.0])
def test_coverage_over_three_seeds_whatever_part_they_have(by_seed: float) -> None:
    assert coverage({"a": 30, "b": 30}, seeds=3, by_seed=by_seed) == pytest.approx(0.955, abs=0.03)


def test_scores_and_ratios_that_only_the_seeds_make_have_students_interval() -> None:
    by_seed = np.array([2.0, 2.3, 2.2])
    values = np.repeat(by_seed[:, None], 40, axis=1) + np.linspace(-1, 1, 40)  # the same questions' spread
    drawn = draws(["all"] * 40, seeds=3)
    questions = np.linspace(-1, 1, 40).std(ddof=1) / math.sqrt(40)
    seeds = stats.t.ppf(0.975, 2) / 1.96 * by_seed.std(ddof=1) / math.sqrt(3)
    half = 1.96 * math.hypot(questions, seeds)
    found = score(values, drawn)
    assert bounds(found) == pytest.approx((found.value - half, found.value + half), abs=half / 20)
    over = relative(values, np.full(40, 4.0), drawn)
    assert over.value == pytest.approx(found.value / 4)
    assert bounds(over) == pytest.approx((found.low / 4, found.high / 4))


def test_over_a_constant_a_ratio_is_the_score_in_another_unit() -> None:
    values = np.random.default_rng(15).normal(9, 1, size=(3, 60))  # noise, of which the seeds have little
    drawn = draws(["all"] * 60, seeds=3)
    over, found = relative(values, np.full(60, 4.0), drawn), score(values, drawn)
    assert bounds(over) == pytest.approx((found.low / 4, found.high / 4))


def test_more_questions_do_not_help_against_the_seeds() -> None:
    values = np.array([[0.1], [-0.2], [0.25]]) + np.linspace(-1, 1, 40)
    assert difference(values, np.zeros(40), draws(["all"] * 40, seeds=3)).questions_needed is None
    one = difference(values.mean(axis=0), np.zeros(40), draws(["all"] * 40))
    assert one.questions_needed is not None


def test_an_interval_stays_inside_the_values() -> None:
    right = np.ones((3, 40))
    right[2, :30] = 0
    found = score(right, draws(["all"] * 40, seeds=3))
    assert (found.low, found.high) == (0, 1)  # Student's goes from -0.3 to 1.8


def test_seeds_that_agree_narrow_the_interval() -> None:
    rng = np.random.default_rng(8)
    noisy = rng.normal(size=(4, 400))
    one = score(noisy[0], draws(["all"] * 400))
    four = score(noisy - noisy.mean(axis=1, keepdims=True), draws(["all"] * 400, seeds=4))
    assert (four.high - four.low) / (one.high - one.low) == pytest.approx(0.5, abs=0.05)


def test_p_against_a_permutation_test() -> None:
    rng = np.random.default_rng(9)
    apart = rng.normal(0.12, 1, size=200)
    found = difference(apart, np.zeros(200), draws(["all"] * 200))
    flips = rng.choice([-1.0, 1.0], size=(20_000, 200)) @ apart / 200
    assert found.p == pytest.approx((np.abs(flips) >= abs(apart.mean())).mean(), abs=0.02)
    assert found.p == pytest.approx(stats.ttest_1samp(apart, 0).pvalue, abs=0.02)


def test_under_no_difference_five_in_a_hundred_are_found() -> None:
    rng = np.random.default_rng(10)
    drawn = draws(["a"] * 30 + ["b"] * 30, resamples=1000)
    found = [difference(rng.normal(size=60), rng.normal(size=60), drawn).p < 0.05 for _ in range(400)]
    assert np.mean(found) == pytest.approx(0.05, abs=0.03)


@pytest.mark.parametrize("questions", [1, 2, 5, 6])
def test_few_questions_settle_no_more_than_a_sign_test(questions: int) -> None:
    found = difference(np.ones(questions), np.zeros(questions), draws(["all"] * questions))
    assert found.p == stats.binomtest(questions, questions).pvalue


@given(st.lists(st.floats(-5, 5), min_size=1, max_size=60))
def test_p_is_below_five_percent_just_where_the_interval_leaves_out_zero(numbers: list[float]) -> None:
    drawn = np.array(numbers * 40)
    found = percentiles(0.0, drawn)
    assert (two_sided(drawn) < 0.05) == (not found.low <= 0 <= found.high)
    assert 0 < two_sided(drawn) <= 1


def test_the_last_draw_that_decides() -> None:
    for below, decides in ((249, True), (250, False)):
        drawn = np.where(np.arange(10_000) < below, -1.0, 1.0)
        assert (two_sided(drawn) < 0.05) == (percentiles(0.0, drawn).low > 0) == decides
        assert (two_sided(-drawn) < 0.05) == (percentiles(0.0, -drawn).high < 0) == decides


VALUES = st.integers(1, 3).flatmap(
    lambda seeds: st.integers(1, 12).flatmap(
        lambda questions: st.tuples(
            st.lists(st.sampled_from("abc"), min_size=questions, max_size=questions),
            *[
                st.lists(
                    st.lists(st.floats(0, 4), min_size=questions, max_size=questions),
                    min_size=seeds,
                    max_size=seeds,
                )
                for _ in range(2)
            ],
        )
    )
)
Given = tuple[list[str], list[list[float]], list[list[float]]]


@given(VALUES)
def test_a_difference_turned_round_is_its_opposite_and_an_arm_differs_not_from_itself(given: Given) -> None:
    names, a, b = given
    drawn = draws(names, seeds=len(a), resamples=50)
    one, other = difference(a, b, drawn), difference(b, a, drawn)
    gap = one.difference
    assert other.difference == Interval(-gap.value, -gap.high, -gap.low)
    assert (one.p, one.questions_needed) == (other.p, other.questions_needed)
    same = difference(a, a, drawn)
    assert (same.difference.value, same.p, same.questions_needed) == (0, 1.0, None)
    assert same.alike
    assert same.difference.low == -same.difference.high < 0
    assert gap.value == pytest.approx(score(a, drawn).value - score(b, drawn).value)


@given(VALUES)
def test_the_order_of_the_questions_changes_no_score(given: Given) -> None:
    names, a, _ = given
    order = np.random.default_rng(len(names)).permutation(len(names))
    seeds = len(a)
    turned = draws([names[place] for place in order], seeds=seeds, resamples=50)
    kept = draws(names, seeds=seeds, resamples=50)
    for name in set(names):
        moved = score(np.array(a)[:, order], turned.only(name))
        assert score(a, kept.only(name)).value == pytest.approx(moved.value)


def test_the_order_of_the_questions_changes_no_interval_beyond_the_draws() -> None:
    rng = np.random.default_rng(11)
    names, values = rng.choice(list("abcd"), size=200), rng.random((3, 200))
    order = rng.permutation(200)
    kept = score(values, draws(names.tolist(), seeds=3))
    moved = score(values[:, order], draws(names[order].tolist(), seeds=3))
    assert bounds(kept) == pytest.approx(bounds(moved), abs=(kept.high - kept.low) / 30)


def test_an_arm_that_is_the_same_for_every_seed_is_given_once() -> None:
    rng = np.random.default_rng(12)
    drawn, base, arm = draws(["all"] * 30, seeds=3), rng.random(30), rng.random((3, 30))
    assert difference(arm, base, drawn) == difference(arm, np.stack([base] * 3), drawn)


def test_questions_needed_are_of_the_paired_spread() -> None:
    rng = np.random.default_rng(13)
    common, apart = rng.normal(0, 10, 400), rng.normal(0.05, 0.5, 400)
    found: Compared = difference(common + apart, common, draws(["all"] * 400))
    known = 7.849 * apart.var(ddof=1) / apart.mean() ** 2
    assert found.questions_needed == pytest.approx(known, rel=0.05)


@pytest.mark.parametrize(
    ("values", "weights", "said"),
    [
        (np.ones(3), None, "shape (1, 3) do not fit 1 seeds and 4 questions"),
        (np.ones((2, 4)), None, "shape (2, 4)"),
        (np.ones((1, 1, 4)), None, "shape (1, 1, 4)"),
        (np.array([1, 2, np.nan, 4]), None, "seed 0 on question 2"),
        (np.ones(4), np.ones(3), "Weights of shape (3,)"),
        (np.ones(4), np.array([1, 0, 1, 1]), "not above 0"),
    ],
)
def test_what_cannot_be_scored_is_one_sentence(values: Floats, weights: Floats | None, said: str) -> None:
    with pytest.raises(StatisticsError) as caught:
        score(values, draws(["a", "a", "b", "b"]), weights)
    assert said in str(caught.value)
    assert str(caught.value).endswith(".")


def test_holm_by_hand() -> None:
    # 4 * 0.005, 3 * 0.01, 2 * 0.03, and 0.04 raised to the one before it
    worked = {"a": 0.03, "b": 0.06, "c": 0.06, "d": 0.02}
    assert holm({"a": 0.01, "b": 0.04, "c": 0.03, "d": 0.005}) == pytest.approx(worked)
    assert holm({"a": 0.6, "b": 0.7}) == {"a": 1.0, "b": 1.0}
    assert holm({}) == {}


@given(st.dictionaries(st.text(max_size=3), st.floats(0.0001, 1), max_size=8))
def test_holm_is_between_p_and_bonferroni_and_knows_no_order(p: dict[str, float]) -> None:
    found = holm(p)
    assert list(found) == list(p)
    assert all(p[name] <= found[name] <= min(1, len(p) * p[name]) for name in p)
    assert holm(dict(reversed(p.items()))) == found


def test_an_interval_in_another_unit() -> None:
    assert Interval(1.0, 0.5, 2.0).scaled(-10) == Interval(-10.0, -20.0, -5.0)


def test_categories_all_right_or_all_wrong_still_leave_doubt() -> None:
    """Two categories of 10, one all right and one all wrong: each end moves by half the exact bound at 10."""
    values = [1.0] * 10 + [0.0] * 10
    found = score(values, draws(["a"] * 10 + ["b"] * 10))
    exact = stats.binomtest(10, 10).proportion_ci(0.95, "exact").low
    assert found.value == 0.5
    assert (found.low, found.high) == pytest.approx((0.5 - (1 - exact) / 2, 0.5 + (1 - exact) / 2))


def test_a_category_with_spread_is_not_widened_by_itself() -> None:
    values = np.array([0.0, 1.0] * 20)
    found = score(values, draws(["a"] * 40))
    assert (found.low, found.high) == pytest.approx((0.35, 0.65), abs=0.026)
