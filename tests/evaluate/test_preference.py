"""Strengths and win rates at equal length: closed forms, simulations with known parameters, scikit-learn."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression

from shepherd.errors import StatisticsError
from shepherd.evaluate.preference import bradley_terry, length_controlled
from shepherd.evaluate.verdicts import Preferred


def preferred(question: object, first: str, second: str, result: float, longer: int = 0) -> Preferred:
    return Preferred(
        question=str(question),
        category="all",
        first=first,
        second=second,
        result=result,
        length_first=100 + longer,
        length_second=100,
    )


def two_arms(wins: int, losses: int, ties: int = 0) -> list[Preferred]:
    results = [1.0] * wins + [0.0] * losses + [0.5] * ties
    return [preferred(place, "a", "b", result) for place, result in enumerate(results)]


@given(st.integers(0, 30), st.integers(0, 30), st.integers(0, 10))
def test_two_arms_by_hand(wins: int, losses: int, ties: int) -> None:
    if wins + losses + ties == 0:
        return
    found = bradley_terry(two_arms(wins, losses, ties), resamples=20)
    log_odds = math.log((wins + ties / 2 + 0.5) / (losses + ties / 2 + 0.5))
    assert found["a"].value - found["b"].value == pytest.approx(log_odds)
    assert found["a"].value == pytest.approx(-found["b"].value)


def test_an_arm_that_always_wins_stays_finite() -> None:
    found = bradley_terry(two_arms(80, 0))
    assert 2 * found["a"].value == pytest.approx(math.log(80.5 / 0.5))
    assert math.isfinite(found["a"].high)


def test_the_interval_of_two_arms_by_the_delta_method() -> None:
    found = bradley_terry(two_arms(240, 160))["a"]
    half = 1.96 * math.sqrt(1 / 240 + 1 / 160) / 2  # strengths are half the log odds each
    assert (found.high - found.low) / 2 == pytest.approx(half, rel=0.05)


def simulated(strengths: Mapping[str, float], questions: int) -> list[Preferred]:
    rng = np.random.default_rng(0)
    arms = list(strengths)
    return [
        preferred(question, a, b, float(rng.random() < 1 / (1 + math.exp(strengths[b] - strengths[a]))))
        for place, a in enumerate(arms)
        for b in arms[:place]
        for question in range(questions)
    ]


def test_three_arms_of_known_strengths() -> None:
    known = {"a": -0.8, "b": 0.1, "c": 0.7}
    verdicts = simulated(known, 1500)
    found = bradley_terry(verdicts, resamples=1000)
    for arm, strength in known.items():
        assert found[arm].low < strength < found[arm].high
        assert found[arm].high - found[arm].low < 0.25
    design = np.array([[(arm == v.first) * 1.0 - (arm == v.second) for arm in known] for v in verdicts])
    library = LogisticRegression(C=np.inf, fit_intercept=False, tol=1e-8)
    fitted = library.fit(design, [v.result for v in verdicts]).coef_[0]
    assert [found[arm].value for arm in known] == pytest.approx(fitted - fitted.mean(), abs=0.005)


def test_the_order_of_verdicts_and_the_side_of_an_arm_change_nothing() -> None:
    verdicts = simulated({"a": 0.0, "b": 1.0, "c": -1.0}, 20)
    turned = [preferred(v.question, v.second, v.first, 1 - v.result) for v in reversed(verdicts)]
    one, other = bradley_terry(verdicts, resamples=200), bradley_terry(turned, resamples=200)
    for arm in one:
        assert list(one[arm].row().values()) == pytest.approx(list(other[arm].row().values()))


def test_asking_a_question_again_is_no_new_evidence() -> None:
    once = two_arms(30, 20)
    thrice = bradley_terry(once * 3)["a"]
    single = bradley_terry(once)["a"]
    assert thrice.high - thrice.low == pytest.approx(single.high - single.low, rel=0.06)


def test_arms_that_no_pair_links_are_refused() -> None:
    apart = [preferred(0, "a", "b", 1), preferred(0, "c", "d", 1)]
    with pytest.raises(StatisticsError, match="never compared"):
        bradley_terry(apart)
    assert len(bradley_terry([*apart, preferred(1, "b", "d", 0)], resamples=10)) == 4


def with_lengths(strength: float, length: float, questions: int, shift: float) -> list[Preferred]:
    """Verdicts by the formula itself; the first arm's answers are longer by `shift` on the whole."""
    rng = np.random.default_rng(1)
    longer = rng.normal(shift, 50, questions).astype(int)
    won = rng.random(questions) < 1 / (1 + np.exp(-(strength + length * np.tanh(longer / longer.std()))))
    return [
        preferred(q, "a", "b", float(w), int(d)) for q, (w, d) in enumerate(zip(won, longer, strict=True))
    ]


def test_length_is_taken_out() -> None:
    verdicts = with_lengths(-0.4, 1.5, 4000, shift=60)
    raw = np.mean([verdict.result for verdict in verdicts])
    known = 1 / (1 + math.exp(0.4))
    found = length_controlled(verdicts, resamples=300)
    assert raw > 0.6  # seems to win, by being long
    assert found.low < known < found.high
    assert found.high - found.low < 0.08


def test_the_fit_is_scikit_learns() -> None:
    verdicts = with_lengths(0.5, -1.0, 150, shift=20)
    longer = np.array([float(verdict.length_first - 100) for verdict in verdicts])
    column = np.append(np.tanh(longer / longer.std()), [0, 0])[:, None]
    outcome = [verdict.result for verdict in verdicts] + [1, 0]  # the tie, half of each
    weights = np.append(np.ones(150), [0.5, 0.5])
    known = LogisticRegression(C=25.0, tol=1e-9).fit(column, outcome, sample_weight=weights)
    rate = 1 / (1 + math.exp(-known.intercept_[0]))
    assert length_controlled(verdicts, resamples=20).value == pytest.approx(rate, abs=1e-4)


def test_equal_lengths_leave_the_win_rate() -> None:
    found = length_controlled(two_arms(30, 10))
    assert found.value == pytest.approx(30.5 / 41)
    half = 1.96 * math.sqrt(0.75 * 0.25 / 40)
    assert (found.high - found.low) / 2 == pytest.approx(half, rel=0.1)


def test_turned_round_it_is_the_rest() -> None:
    verdicts = with_lengths(0.5, 1.0, 60, shift=10)
    turned = [
        Preferred(
            question=v.question,
            category=v.category,
            first="b",
            second="a",
            result=1 - v.result,
            length_first=v.length_second,
            length_second=v.length_first,
        )
        for v in verdicts
    ]
    one, other = length_controlled(verdicts, resamples=200), length_controlled(turned, resamples=200)
    assert [one.value, one.low, one.high] == pytest.approx([1 - other.value, 1 - other.high, 1 - other.low])


def test_a_win_rate_at_equal_length_is_of_one_pair() -> None:
    with pytest.raises(StatisticsError, match="one pair"):
        length_controlled([preferred(0, "a", "b", 1), preferred(0, "a", "c", 1)])


def test_questions_that_are_all_ties_have_an_interval() -> None:
    """Clopper and Pearson's bound for 3 of 3; also where a tie is a win each way, as by a judge that always
    prefers the first answer."""
    hidden = 1 - 0.025 ** (1 / 3)
    tied = [[0.5], [0.5, 0.5, 0.5], [1.0, 0.0], [0.0, 1.0, 0.5]]
    for results in tied:
        found = length_controlled(
            [
                Preferred(
                    question=f"q{n}",
                    category="",
                    first="a",
                    second="b",
                    result=r,
                    length_first=9,
                    length_second=9,
                )
                for n in range(3)
                for r in results
            ]
        )
        assert found.value == pytest.approx(0.5)
        assert (found.low, found.high) == (pytest.approx(0.5 - hidden / 2), pytest.approx(0.5 + hidden / 2))
