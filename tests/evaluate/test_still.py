"""No interval of zero width: categories whose questions all say the same, against tests inverted by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import optimize, stats

from shepherd.evaluate.against import against
from shepherd.evaluate.draws import draws
from shepherd.evaluate.judged import fedit_table, preference_table
from shepherd.evaluate.metrics.right import MEASURE as RIGHT
from shepherd.evaluate.power import questions_needed
from shepherd.evaluate.sentences import LOSS
from shepherd.evaluate.statistics import Interval, difference, relative, score
from shepherd.evaluate.still import LOSS as NATS
from shepherd.evaluate.verdicts import Preferred, Scored


def tango(b: int, c: int, n: int) -> tuple[float, float]:
    """Tango's (1998) interval of a paired difference: b and c of n pairs are right in one arm alone.

    By its definition, as slowly as it is written down: the likelihood's maximum at each difference is
    searched for, and the score test there is solved for its two ends.
    """

    def statistic(gap: float) -> float:
        def loss(q: float) -> float:  # q: the chance that only the second is right
            parts = ((b, q + gap), (c, q), (n - b - c, 1 - 2 * q - gap))
            return -sum(k * math.log(max(p, 1e-300)) for k, p in parts if k)

        low, high = max(0.0, -gap), (1 - gap) / 2
        q = float(
            optimize.minimize_scalar(loss, bounds=(low, high), method="bounded", options={"xatol": 1e-12}).x
        )
        return (b - c - n * gap) / math.sqrt(max(n * (2 * q + gap - gap * gap), 1e-12))

    z, value = stats.norm.ppf(0.975), (b - c) / n
    low = -1.0 if value == -1 else optimize.brentq(lambda gap: statistic(gap) - z, -1 + 1e-9, value - 1e-9)
    high = 1.0 if value == 1 else optimize.brentq(lambda gap: statistic(gap) + z, value + 1e-9, 1 - 1e-9)
    return low, high


def bounds(found: Interval) -> tuple[float, float]:
    return found.low, found.high


@pytest.mark.parametrize(
    ("cells", "published"),
    [((1, 1, 7, 12), (-0.517, -0.026)), ((53, 16, 8, 9), (-0.020, 0.207))],
    ids=["Fagerland, Lydersen and Laake (2014)", "Agresti and Min (2005)"],
)
def test_the_slow_interval_is_the_published_one(cells, published) -> None:
    """Both right, the first alone, the second alone, both wrong; figures as R's ratesci tests itself on."""
    assert tango(cells[1], cells[2], sum(cells)) == pytest.approx(published, abs=6e-4)


@pytest.mark.parametrize("n", [6, 10, 40, 400])
@pytest.mark.parametrize("sign", [1, 0, -1])
def test_paired_shares_that_all_say_the_same_have_tangos_interval(n: int, sign: int) -> None:
    a, b = np.full(n, float(sign > 0)), np.full(n, float(sign < 0))
    found = difference(a, b, draws(["all"] * n))
    assert found.difference.value == sign
    wanted = tango(n if sign > 0 else 0, n if sign < 0 else 0, n)
    assert bounds(found.difference) == pytest.approx(wanted, abs=2e-4)


def test_a_few_questions_never_settle_anything_nor_ask_for_one() -> None:
    found = difference(np.ones(3), np.zeros(3), draws(["a"] * 3))
    assert found.p == 0.25
    assert found.difference.low == pytest.approx(tango(3, 0, 3)[0], abs=2e-4)
    assert found.difference.low < 0 < found.difference.value == found.difference.high == 1
    assert found.questions_needed is not None
    assert found.questions_needed >= 6
    found = difference([1.0] * 10, [0.0] * 5 + [1.0] * 5, draws(["a"] * 5 + ["b"] * 5))
    assert (found.p, found.difference.value) == (0.0625, 0.5)
    assert found.difference.low <= 0 < 0.6 < found.difference.high
    assert found.questions_needed is not None
    assert found.questions_needed >= 12  # of which a sign test needs six that differ


def test_one_question_says_next_to_nothing() -> None:
    one = draws(["a"])
    assert bounds(difference([1.0], [0.4], one).difference) == (-1.0, 1.0)
    assert bounds(score([0.4], one)) == pytest.approx((0.4 * 0.025, 0.4 + 0.6 * 0.975))
    nats = difference([2.1], [2.5], one, span=NATS)
    assert bounds(nats.difference) == (-math.inf, math.inf)
    assert (nats.p, nats.questions_needed) == (1.0, None)
    assert nats.difference.row() == {"value": pytest.approx(-0.4), "low": None, "high": None}


def test_categories_without_spread_add_up_with_those_that_have_it() -> None:
    """By the roots of sums of squares: one of 20 that is still, one of 30 that is not."""
    rng = np.random.default_rng(0)
    moving = rng.random(30)
    names = ["still"] * 20 + ["moving"] * 30
    a, b = np.r_[np.ones(20), moving], np.r_[np.zeros(20), np.zeros(30)]
    found = difference(a, b, draws(names)).difference
    half = 1.96 * moving.std(ddof=1) / math.sqrt(30) / 2
    below = (1 - tango(20, 0, 20)[0]) / 2
    assert found.value - found.low == pytest.approx(math.hypot(half, below), rel=0.03)
    assert found.high - found.value == pytest.approx(half, rel=0.06)


def test_small_categories_that_say_the_same_count_as_one() -> None:
    names = [f"c{i // 2}" for i in range(80)]
    a = np.where(np.arange(80) < 40, 1.0, np.arange(80) % 2)  # the second half shows spread
    found = difference(a, np.zeros(80), draws(names)).difference
    below = 0.5 * (1 - tango(40, 0, 40)[0])
    half = (10 - stats.binom.ppf(0.025, 20, 0.5)) / 40  # one of each pair is drawn
    assert found.value - found.low == pytest.approx(math.hypot(below, half), rel=0.01)


VALUES = st.integers(1, 12).flatmap(
    lambda n: st.tuples(
        st.lists(st.sampled_from("abc"), min_size=n, max_size=n),
        st.lists(st.sampled_from([0.0, 0.5, 1.0]), min_size=n, max_size=n),
        st.lists(st.sampled_from([0.0, 1.0]), min_size=n, max_size=n),
    )
)


@given(VALUES, st.sampled_from([(0.0, 1.0), NATS]))
def test_no_interval_has_no_width_and_p_goes_with_it(given, span) -> None:
    names, a, b = given
    drawn = draws(names, resamples=200)
    found = difference(a, b, drawn, span=span)
    gap = found.difference
    assert gap.low < gap.high
    assert gap.low <= gap.value <= gap.high
    assert (found.p < 0.05) == (not gap.low <= 0 <= gap.high)
    assert found.questions_needed is None or found.questions_needed >= 6
    mine = score(a, drawn)
    assert mine.low < mine.high
    assert mine.low <= mine.value <= mine.high
    over = relative(a, b, drawn)
    assert not math.isfinite(over.value) or over.low < over.high
    if found.p >= 0.05 and math.isfinite(found.relative.value):
        assert found.relative.low <= 1 <= found.relative.high


def test_a_ratio_that_is_the_same_in_every_question_has_a_width() -> None:
    found = relative([0.0, 0.5], [0.0, 1.0], draws(["a", "a"]))
    assert found.low < found.value == 0.5 < found.high


def test_p_against_mcnemars_where_every_question_says_the_same() -> None:
    """The score test of a paired difference of shares, at its edge: sqrt(n) for n of n."""
    for n in (8, 12, 20):
        found = difference(np.ones(n), np.zeros(n), draws(["all"] * n))
        mcnemar = 2 * stats.norm.sf(math.sqrt(n))
        assert found.p == pytest.approx(max(mcnemar, 2.0 ** (1 - n)), rel=1e-3)


@pytest.mark.parametrize("value", [0.0, 0.3, 0.5, 1.0])
def test_a_measure_between_none_and_all_is_bounded_as_a_share_is(value: float) -> None:
    """At most m of questions like these say something else: at worst 0, or 1."""
    missed = stats.binomtest(0, 12).proportion_ci(0.95, "exact").high
    found = score(np.full(12, value), draws(["a"] * 12))
    assert bounds(found) == pytest.approx((value - missed * value, value + missed * (1 - value)))


def test_losses_that_are_all_the_same_have_no_bound_that_could_be_known() -> None:
    found = score(np.full(9, 2.0), draws(["a"] * 9))
    assert 0 < found.low < 2 <= found.high
    (row,) = against("x", {"x": np.full(9, 2.0), "y": np.full(9, 2.5)}, draws(["a"] * 9), LOSS)
    assert bounds(row.compared.difference) == (-math.inf, math.inf)
    assert row.compared.p == 1
    assert "cannot tell x from y" in row.says
    assert "95%: -infinity to infinity" in row.says


def test_arms_that_agree_on_every_question_are_said_to() -> None:
    right = np.array([1.0, 0.0, 1.0, 1.0])
    (row,) = against("x", {"x": right, "y": right}, draws(["a"] * 4), RIGHT)
    assert row.says == "x and y score the same on every one of these 4 questions."
    assert row.compared.difference.low < 0 < row.compared.difference.high


def test_a_ratio_of_scores_without_spread_reaches_as_far_as_their_difference() -> None:
    over = relative(np.ones(8), np.full(8, 0.5), draws(["a"] * 8))
    gap = difference(np.ones(8), np.full(8, 0.5), draws(["a"] * 8)).difference
    assert over.value == 2
    assert over.low < 2
    assert over.low <= 1 + max(gap.low, 0) / 0.5
    same = relative(np.ones(8), np.ones(8), draws(["a"] * 8))
    assert same.low < 1 < same.high


def test_a_judge_who_always_says_the_same_leaves_doubt() -> None:
    always = [
        Preferred(
            question=f"q{i}",
            category="all",
            first="a",
            second="b",
            result=1.0,
            length_first=9,
            length_second=9,
        )
        for i in range(7)
    ]
    (row,) = preference_table(always)["rows"]
    for name in ("win_rate", "length_controlled"):
        assert row[name]["low"] < row[name]["value"] <= row[name]["high"]
    assert row["win_rate"]["low"] == pytest.approx(stats.binomtest(7, 7).proportion_ci(0.95, "exact").low)
    for each in preference_table(always)["strengths"]:
        strength = each["strength"]
        assert strength["low"] < strength["value"] < strength["high"]
        # of two arms: half the difference, whose variance is 1 / (w + 1/2) + 1 / (l + 1/2)
        half = 1.96 / 2 * math.sqrt(1 / 7.5 + 1 / 0.5)
        assert strength["high"] - strength["value"] == pytest.approx(half, rel=0.01)
    scores = [
        Scored(
            question=f"q{i}",
            category="all",
            first="a",
            second="b",
            repeat=0,
            score_first=8.0,
            score_second=9.0,
        )
        for i in range(7)
    ]
    (row,) = fedit_table(scores)
    for name in ("sum_first", "sum_second", "relative"):
        assert row[name]["low"] < row[name]["value"] < row[name]["high"]


def test_nothing_known_of_the_spread_is_no_number_of_questions() -> None:
    assert questions_needed(0.5, 0.0) is None
    assert questions_needed(0.5, math.inf) is None


def test_the_interval_of_few_paired_answers_covers() -> None:
    """Rare differences, few questions: percentiles alone hold the true one 73 times in a hundred."""
    rng = np.random.default_rng(1)
    held = 0
    for _ in range(300):
        a = (rng.random(15) < 0.97).astype(float)
        b = (rng.random(15) < 0.9).astype(float)
        found = difference(a, b, draws(["all"] * 15, resamples=400)).difference
        held += found.low <= 0.07 <= found.high
    assert held / 300 > 0.9
