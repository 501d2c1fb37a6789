"""Tables of a judge's verdicts: FedIT's sums and relative scores, and win rates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from shepherd.errors import StatisticsError
from shepherd.evaluate.draws import draws
from shepherd.evaluate.preference import bradley_terry, length_controlled
from shepherd.evaluate.sentences import FEW_QUESTIONS, decided, settle, shown, these
from shepherd.evaluate.statistics import (
    Compared,
    Interval,
    Sample,
    between,
    holm,
    interval,
    sample,
    score,
)
from shepherd.evaluate.still import SHARE, Span
from shepherd.evaluate.verdicts import Preferred, Scored, require

Floats = NDArray[np.float64]
Pair = tuple[str, str]
Verdict = TypeVar("Verdict", Scored, Preferred)
MAX_SCORE = 10
SCORES: Span = (1.0, float(MAX_SCORE))


@dataclass(frozen=True, slots=True, eq=False)
class _Tested:
    """Samples of both arms of a pair on its questions, and their difference."""

    first: Sample
    second: Sample
    compared: Compared


def fedit_table(scored: Sequence[Scored], against: str | None = None) -> list[dict[str, Any]]:
    """Make FedIT's table (Zhang et al. 2023, arXiv 2305.05644), one row per pair of arms.

    Repeats are averaged for each question and summed over the questions, out of 10 x questions; the
    relative score is the second arm's sum over the first's, like the paper's Shepherd over its baseline.
    Intervals resample the questions; p is that of the difference, with Holm's correction over the pairs.

    Args:
        against: the arm to put second in each of its pairs.

    Raises:
        StatisticsError: there are no scores, or one is not from 1 to 10.
    """
    _require_scores(scored)
    pairs = _by_pair([_with_second(verdict, against) for verdict in scored])
    tested = {pair: _test_scores(verdicts) for pair, verdicts in pairs.items()}
    corrected = holm({_key(pair): one.compared.p for pair, one in tested.items()})
    return [_fedit_row(pair, one, corrected[_key(pair)], len(pairs)) for pair, one in tested.items()]


def preference_table(preferred: Sequence[Preferred], against: str | None = None) -> dict[str, Any]:
    """Make the table of win rates of pairs of arms, and the strengths of all arms.

    Returns:
        rows: one per pair: wins, ties and losses of its first arm; its win rate, a tie being half a win,
        over all questions and by category; the win rate at equal length; p of "it is a half", with Holm's
        correction over the pairs. strengths: the arms by Bradley-Terry, the strongest first, in log odds
        with mean 0; empty if some arms are not linked by any pair. says: one sentence per row.

    Args:
        against: the arm to put first in each of its pairs.

    Raises:
        StatisticsError: there are no verdicts, or one cannot be read.
    """
    require(preferred)
    pairs = _by_pair([_with_first(verdict, against) for verdict in preferred])
    tested = {pair: _test_results(verdicts) for pair, verdicts in pairs.items()}
    corrected = holm({_key(pair): one.compared.p for pair, one in tested.items()})
    rows = [
        _preference_row(pair, verdicts, tested[pair], corrected[_key(pair)], len(pairs))
        for pair, verdicts in pairs.items()
    ]
    return {"rows": rows, "strengths": _strengths(preferred), "says": [row["says"] for row in rows]}


def _key(pair: Pair) -> str:
    return "\n".join(pair)


def _by_pair(verdicts: Sequence[Verdict]) -> dict[Pair, list[Verdict]]:
    """Verdicts of each pair, in the order of the pairs' first occurrence; (b, a) joins (a, b)."""
    pairs: dict[Pair, list[Verdict]] = {}
    for verdict in verdicts:
        turned = (verdict.second, verdict.first)
        if turned in pairs:
            pairs[turned].append(_swapped(verdict))
        else:
            pairs.setdefault((verdict.first, verdict.second), []).append(verdict)
    return pairs


def _swapped(verdict: Verdict) -> Verdict:
    if isinstance(verdict, Scored):
        return replace(
            verdict,
            first=verdict.second,
            second=verdict.first,
            score_first=verdict.score_second,
            score_second=verdict.score_first,
        )
    return replace(
        verdict,
        first=verdict.second,
        second=verdict.first,
        result=1 - verdict.result,
        length_first=verdict.length_second,
        length_second=verdict.length_first,
    )


def _with_second(verdict: Scored, against: str | None) -> Scored:
    return _swapped(verdict) if verdict.first == against else verdict


def _with_first(verdict: Preferred, against: str | None) -> Preferred:
    return _swapped(verdict) if verdict.second == against else verdict


def _by_question(questions: Sequence[str], numbers: Sequence[float]) -> Floats:
    """Each question's mean, (Q,), with the questions in sorted order."""
    _, place, met = np.unique(questions, return_inverse=True, return_counts=True)
    return np.bincount(place, weights=np.asarray(numbers, dtype=np.float64)) / met


def _test(first: Floats, second: Floats, spans: tuple[Span, Span]) -> _Tested:
    drawn = draws(["all"] * len(first))
    one, other = sample(first, drawn, span=spans[0]), sample(second, drawn, span=spans[1])
    return _Tested(one, other, between(one, other))


def _test_scores(verdicts: Sequence[Scored]) -> _Tested:
    questions = [verdict.question for verdict in verdicts]
    return _test(
        _by_question(questions, [verdict.score_second for verdict in verdicts]),
        _by_question(questions, [verdict.score_first for verdict in verdicts]),
        (SCORES, SCORES),
    )


def _test_results(verdicts: Sequence[Preferred]) -> _Tested:
    rates = _by_question([verdict.question for verdict in verdicts], [verdict.result for verdict in verdicts])
    return _test(rates, np.full(len(rates), 0.5), (SHARE, (0.5, 0.5)))


def _fedit_row(pair: Pair, tested: _Tested, p_holm: float, pairs: int) -> dict[str, Any]:
    baseline, arm = pair
    compared = tested.compared
    sums = {
        "sum_first": interval(tested.second).scaled(compared.questions),
        "sum_second": interval(tested.first).scaled(compared.questions),
    }
    return {
        "first": baseline,
        "second": arm,
        "questions": compared.questions,
        "out_of": MAX_SCORE * compared.questions,
        **{name: total.row() for name, total in sums.items()},
        "relative": compared.relative.row(),
        **_test_row(compared, p_holm),
        "says": _fedit_says(pair, compared, sums, p_holm if pairs > 1 else None),
    }


def _test_row(compared: Compared, p_holm: float) -> dict[str, Any]:
    return {"p": compared.p, "p_holm": p_holm, "questions_needed": compared.questions_needed}


def _fedit_says(pair: Pair, compared: Compared, sums: Mapping[str, Interval], p_holm: float | None) -> str:
    baseline, arm = pair
    ratio = compared.relative
    against = (
        f"{sums['sum_second'].value:.1f} against {sums['sum_first'].value:.1f} "
        f"of {MAX_SCORE * compared.questions}"
    )
    relative = f"relative score {ratio.value:.3f}"
    bounds = f"95%: {ratio.low:.3f} to {ratio.high:.3f}"
    if decided(compared, p_holm):
        where = "above" if compared.difference.value > 0 else "below"
        return (
            f"The judge scores {arm} {where} {baseline} on {_rests_on(compared)}: {against}, {relative} "
            f"({bounds}; {shown(compared.p, p_holm)})."
        )
    return (
        f"By the judge's scores, {these(compared)} cannot tell {arm} from {baseline}: "
        f"{against}, {relative} ({bounds}){settle(compared, p_holm)}."
    )


def _preference_row(
    pair: Pair, verdicts: Sequence[Preferred], tested: _Tested, p_holm: float, pairs: int
) -> dict[str, Any]:
    rate = interval(tested.first)
    results = [verdict.result for verdict in verdicts]
    return {
        "first": pair[0],
        "second": pair[1],
        "questions": tested.compared.questions,
        "win": results.count(1),
        "tie": results.count(0.5),
        "loss": results.count(0),
        "win_rate": rate.row(),
        "length_controlled": length_controlled(verdicts).row(),
        "category": {name: one.row() for name, one in _by_category(verdicts).items()},
        **_test_row(tested.compared, p_holm),
        "says": _preference_says(pair, results, tested.compared, rate, p_holm if pairs > 1 else None),
    }


def _by_category(verdicts: Sequence[Preferred]) -> dict[str, Interval]:
    rates = {}
    for category in sorted({verdict.category for verdict in verdicts}):
        inside = [verdict for verdict in verdicts if verdict.category == category]
        values = _by_question([one.question for one in inside], [one.result for one in inside])
        rates[category] = score(values, draws(["all"] * len(values)))
    return rates


def _preference_says(
    pair: Pair, results: Sequence[float], compared: Compared, rate: Interval, p_holm: float | None
) -> str:
    rated = f"win rate {100 * rate.value:.1f}%"
    bounds = f"95%: {100 * rate.low:.1f} to {100 * rate.high:.1f}"
    if not decided(compared, p_holm):
        return (
            f"By the judge's preference, {these(compared)} cannot tell {pair[0]} from {pair[1]}: "
            f"{rated} ({bounds}){settle(compared, p_holm)}."
        )
    better, worse = pair if compared.difference.value > 0 else pair[::-1]
    return (
        f"The judge prefers {better} to {worse} on {_rests_on(compared)}: {pair[0]} wins {results.count(1)}, "
        f"ties {results.count(0.5)} and loses {results.count(0)}, {rated} "
        f"({bounds}; {shown(compared.p, p_holm)})."
    )


def _rests_on(compared: Compared) -> str:
    """The questions that a verdict rests on, with a word if they are few."""
    few = ", which are few" if 1 < compared.questions < FEW_QUESTIONS else ""
    return f"{these(compared)}{few}"


def _strengths(preferred: Sequence[Preferred]) -> list[dict[str, Any]]:
    try:
        strengths = bradley_terry(preferred)
    except StatisticsError:
        return []
    ordered = sorted(strengths.items(), key=lambda item: -item[1].value)
    return [{"arm": arm, "strength": strength.row()} for arm, strength in ordered]


def _require_scores(scored: Sequence[Scored]) -> None:
    if not scored:
        raise StatisticsError("There are no scores for a table; have the judge score at least one question.")
    for verdict in scored:
        scores = (verdict.score_first, verdict.score_second)
        if verdict.first == verdict.second or not all(1 <= number <= MAX_SCORE for number in scores):
            raise StatisticsError(
                f"The scores {scores} on question {verdict.question!r} for {verdict.first} and "
                f"{verdict.second} cannot be used; give two arms and scores from 1 to {MAX_SCORE}."
            )
