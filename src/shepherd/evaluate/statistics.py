"""Scores with their intervals: a bootstrap clustered by question, stratified by category, paired over arms.

Values are (S, Q): one number a seed and question. The statistic is the mean over categories of the
weighted mean inside the category, averaged over seeds. One draw resamples the questions of each category
(`draws.py`) and moves the seeds (`seeds.py`), the same for every arm, so differences are paired. A category
whose questions all have one value shows no spread to a resample; what it may have all the same widens the
interval (`still.py`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from shepherd.errors import StatisticsError
from shepherd.evaluate import seeds as of_seeds
from shepherd.evaluate.draws import Draws, Group, chunks
from shepherd.evaluate.power import questions_needed
from shepherd.evaluate.still import SHARE, Span, Still, exact, scored, slack, still

Floats = NDArray[np.float64]
ALPHA = 0.05
_HALVINGS = 30  # of the search for a p: to one part in a billion
_NORMAL = 1.959964


@dataclass(frozen=True, slots=True)
class Interval:
    """A number and its 95% interval. Where a ratio has no finite value or bound, it is NaN or infinite."""

    value: float
    low: float
    high: float

    def row(self) -> dict[str, float | None]:
        """As it stands in JSON: None where there is no finite number.

        >>> Interval(2.0, 1.5, float("inf")).row()
        {'value': 2.0, 'low': 1.5, 'high': None}
        """
        numbers = {"value": self.value, "low": self.low, "high": self.high}
        return {name: number if math.isfinite(number) else None for name, number in numbers.items()}

    def reaching(self, number: float) -> Interval:
        """Widened to hold a number that cannot be left out; as it is, where it has no finite value."""
        if not math.isfinite(self.value):
            return self
        return Interval(self.value, min(self.low, number), max(self.high, number))

    def scaled(self, factor: float) -> Interval:
        """The interval in another unit; a negative factor turns it round."""
        low, high = sorted((self.low * factor, self.high * factor))
        return Interval(self.value * factor, low, high)


@dataclass(frozen=True, slots=True, eq=False)
class Sample:
    """One arm on the draws: its score, each seed's score (S,), and the questions' part of each draw (R,)."""

    draws: Draws
    values: Floats  # (S, Q)
    weights: Floats  # (Q,)
    seeds: Floats
    resampled: Floats
    span: Span

    @property
    def value(self) -> float:
        return float(self.seeds.mean())


def sample(values: ArrayLike, draws: Draws, weights: ArrayLike | None = None, span: Span = SHARE) -> Sample:
    """One arm's values (S, Q) on the draws; (Q,) where the arm is the same for every seed.

    Args:
        weights: (Q,), above 0, the questions' weights inside their category; for a loss, values are each
            example's mean loss and weights its trained tokens. None: all alike.
        span: the least and the largest value that there can be; a value outside widens it.

    Raises:
        StatisticsError: shapes that do not fit the draws, a value that is not finite, a weight not above 0.
    """
    given = _finite(values, draws)
    heavy = _weights(weights, len(draws.strata))
    low, high = span
    return Sample(
        draws=draws,
        values=given,
        weights=heavy,
        seeds=_means(given, heavy, draws),
        resampled=_resampled(given.mean(axis=0), heavy, draws),
        span=(min(low, float(given.min())), max(high, float(given.max()))),
    )


def _finite(values: ArrayLike, draws: Draws) -> Floats:
    given = np.atleast_2d(np.asarray(values, dtype=np.float64))
    wanted = (draws.seeds, len(draws.strata))
    if given.ndim != 2 or given.shape[1] != wanted[1] or given.shape[0] not in (1, wanted[0]):
        raise StatisticsError(
            f"Scores of shape {given.shape} do not fit {wanted[0]} seeds and {wanted[1]} questions: "
            "give one number for each seed and question."
        )
    if not np.isfinite(given).all():
        place = np.argwhere(~np.isfinite(given))[0].tolist()
        raise StatisticsError(
            f"The score of seed {place[0]} on question {place[1]} is not a finite number: leave it out."
        )
    return np.broadcast_to(given, wanted)


def _weights(weights: ArrayLike | None, questions: int) -> Floats:
    given = np.ones(questions) if weights is None else np.asarray(weights, dtype=np.float64)
    if given.shape != (questions,):
        raise StatisticsError(
            f"Weights of shape {given.shape} do not fit {questions} questions: give one weight a question."
        )
    if not (np.isfinite(given) & (given > 0)).all():
        raise StatisticsError("A question's weight is not above 0: leave out questions that carry no weight.")
    return given


def _inside(group: Group, weights: Floats) -> Floats:
    return np.ones(len(group.places)) if group.single else weights[group.places]


def _means(values: Floats, weights: Floats, draws: Draws) -> Floats:
    """(S,): each seed's statistic on the questions as they are."""
    scores = np.zeros(len(values))
    for group in draws.groups:
        inside = _inside(group, weights)
        scores += group.share * (values[:, group.places] @ inside) / inside.sum()
    return scores


def _resampled(values: Floats, weights: Floats, draws: Draws) -> Floats:
    """(R,): the statistic on the questions of each draw, from values (Q,)."""
    scores = np.zeros(len(draws.contrasts))
    for group in draws.groups:
        inside = _inside(group, weights)
        columns = np.stack([inside * values[group.places], inside], axis=1)  # (n, 2)
        for rows in chunks(len(scores), len(inside)):
            sums = group.counts[rows].astype(np.float64) @ columns
            scores[rows] += group.share * sums[:, 0] / sums[:, 1]
    return scores


def _noise(values: Floats, weights: Floats, draws: Draws) -> float:
    """The variance of one seed's score that its questions' own noise makes (seed by question)."""
    if len(values) == 1:
        return 0.0
    total = 0.0
    for group in draws.groups:
        inside = _inside(group, weights) / _inside(group, weights).sum()
        apart = values[:, group.places] - values[:, group.places].mean(axis=0)  # (S, n)
        apart = apart - (apart @ inside)[:, None]
        freedom = (len(values) - 1) * max(len(inside) - 1, 1) / len(inside)
        total += group.share**2 * float((apart**2 @ inside**2).sum()) / freedom
    return total


def _luck(contrast: Floats, weights: Floats, draws: Draws) -> float:
    scores = _means(contrast, weights, draws)
    return of_seeds.luck(scores, _noise(contrast, weights, draws))


def _drawn(arm: Sample, luck: float) -> Floats:
    """(R,): both parts of each draw, inside the range of the values themselves."""
    drawn = arm.resampled + luck * (arm.draws.contrasts @ (arm.seeds - arm.value))
    return np.clip(drawn, arm.values.min(), arm.values.max())


def percentiles(value: float, drawn: Floats, alpha: float = ALPHA) -> Interval:
    """The percentile interval of draws (R,) at 1 - `alpha`; NaN draws, of 0 / 0, do not count.

    The order statistics are those at which the two-sided p of `two_sided` passes `alpha`.
    """
    kept = np.sort(drawn[~np.isnan(drawn)])
    if not len(kept):
        return Interval(value, math.nan, math.nan)
    cut = max(math.floor(alpha / 2 * (len(kept) + 1) + 1e-9) - 1, 0)
    return Interval(value, float(kept[cut]), float(kept[len(kept) - 1 - cut]))


def two_sided(drawn: Floats) -> float:
    """The two-sided bootstrap p of "it is 0": (1 + k) / (1 + R) of the rarer side, twice; never 0.

    Below 5% just where the percentile interval does not hold 0.
    """
    rarer = min(int((drawn <= 0).sum()), int((drawn >= 0).sum()))
    return min(1.0, 2 * (1 + rarer) / (1 + len(drawn)))


def interval(arm: Sample) -> Interval:
    """An arm's score. Never of zero width: see `still.py`; at n of n right it is Clopper and Pearson's."""
    drawn = percentiles(arm.value, _drawn(arm, _luck(arm.values, arm.weights, arm.draws)))
    return _widened(drawn, slack(_still(arm), ALPHA, exact), arm.span)


def _still(arm: Sample) -> tuple[Still, ...]:
    return still(arm.values.mean(axis=0), arm.draws.groups, arm.span)


def _widened(drawn: Interval, by: tuple[float, float], span: Span) -> Interval:
    """Further by independent parts: by the roots of sums of squares (Zou and Donner, 2008)."""
    below, above = by
    value, low, high = drawn.value, drawn.low, drawn.high
    return Interval(
        value,
        max(span[0], value - math.hypot(value - low, below)) if below else low,
        min(span[1], value + math.hypot(high - value, above)) if above else high,
    )


def score(values: ArrayLike, draws: Draws, weights: ArrayLike | None = None) -> Interval:
    """The score of an arm with values (S, Q) or (Q,), and its interval; see `sample` for what is refused."""
    return interval(sample(values, draws, weights))


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    """First minus second, and first / second, on the same questions, seeds and draws.

    p: two-sided, by the interval: below 5% just where that leaves out 0. Never below that of a sign test in
    which every question that differs speaks for the same arm, to which the interval is then widened: five
    questions settle nothing. questions_needed: those that would settle a difference of this size at 80%
    power; None where no number would, or the questions show no spread and the measure has no bounds.
    alike: no question tells the two apart.
    """

    difference: Interval
    relative: Interval
    p: float
    questions: int
    seeds: int
    questions_needed: int | None
    alike: bool = False


def difference(
    a: ArrayLike, b: ArrayLike, draws: Draws, weights: ArrayLike | None = None, span: Span = SHARE
) -> Compared:
    """a minus b, each (S, Q) or (Q,); see `sample` for what is refused."""
    return between(sample(a, draws, weights, span), sample(b, draws, weights, span))


def relative(
    a: ArrayLike, b: ArrayLike, draws: Draws, weights: ArrayLike | None = None, span: Span = SHARE
) -> Interval:
    """a / b, for measures that are never negative.

    NaN or infinite where b's score is 0; a bound is infinite where b is 0 in too many draws.
    """
    return ratio(sample(a, draws, weights, span), sample(b, draws, weights, span))


@dataclass(frozen=True, slots=True, eq=False)
class _Gap:
    """a minus b: its draws (R,), and what the categories add that show no spread of it."""

    value: float
    drawn: Floats
    still: tuple[Still, ...]
    span: Span

    def interval(self, alpha: float = ALPHA) -> Interval:
        """At 1 - alpha; of paired shares that show no spread it is Tango's (1998)."""
        return _widened(
            percentiles(self.value, self.drawn, alpha), slack(self.still, alpha, scored), self.span
        )

    def p(self) -> float:
        """The least alpha at which the interval leaves out 0; `two_sided` where every category has spread."""
        if not self.still:
            return two_sided(self.drawn)
        low, high = 0.0, 1.0
        for _ in range(_HALVINGS):
            middle = (low + high) / 2
            found = self.interval(middle)
            low, high = (middle, high) if found.low <= 0 <= found.high else (low, middle)
        return high


def _gap(a: Sample, b: Sample) -> _Gap:
    contrast = a.values - b.values
    value = a.value - b.value
    luck = _luck(contrast, a.weights, a.draws)
    drawn = a.resampled - b.resampled + luck * (a.draws.contrasts @ (a.seeds - b.seeds - value))
    span = a.span[0] - b.span[1], a.span[1] - b.span[0]
    return _Gap(value, drawn, still(contrast.mean(axis=0), a.draws.groups, span), span)


def between(a: Sample, b: Sample) -> Compared:
    """a minus b, of two arms on the same draws and weights."""
    contrast, gap = a.values - b.values, _gap(a, b)
    differing = _differing(contrast, a.draws)
    p = max(gap.p(), min(1.0, 2.0 ** (1 - differing)))
    apart, over = gap.interval(), ratio(a, b)
    return Compared(
        difference=apart.reaching(0.0) if p >= ALPHA else apart,
        relative=over.reaching(1.0) if p >= ALPHA else over,
        p=p,
        questions=a.draws.questions,
        seeds=a.draws.seeds,
        questions_needed=_needed(a, b, gap, differing),
        alike=not differing,
    )


def _differing(contrast: Floats, draws: Draws) -> int:
    """How many of the questions (S, Q) differ at all: a sign test's p is 2 ** (1 - this) at least."""
    places = np.concatenate([group.places for group in draws.groups])
    return int((contrast[:, places] != 0).any(axis=0).sum())


def _needed(a: Sample, b: Sample, gap: _Gap, differing: int) -> int | None:
    """Questions until a difference of this size is settled, at least so many that a sign test can do it."""
    luck = _luck(a.values - b.values, a.weights, a.draws)
    more = math.hypot(*slack(gap.still, ALPHA, scored)) / math.sqrt(2) / _NORMAL
    spread = math.hypot(float((a.resampled - b.resampled).std()), more)
    found = questions_needed(
        gap.value,
        spread * math.sqrt(a.draws.questions),
        floor=of_seeds.variance(a.seeds - b.seeds, luck),
    )
    least = 1 + math.ceil(math.log2(1 / ALPHA))  # that differ, all in favour of one arm
    return None if found is None else max(found, math.ceil(least * a.draws.questions / max(1, differing)))


def ratio(a: Sample, b: Sample) -> Interval:
    """a / b, of two arms on the same draws and weights; for measures that are never negative.

    Where a category shows no spread, or the ratio none, it reaches at least as far as the difference does,
    over b's score.
    """
    luck = 1.0
    if a.value and b.value:
        luck = _luck(a.values / a.value - b.values / b.value, a.weights, a.draws)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        value = float(np.float64(a.value) / np.float64(b.value))
        found = percentiles(value, _drawn(a, luck) / _drawn(b, luck))
    gap = _gap(a, b)
    spread = found.low < found.high  # none where a is the same part of b in every question
    if not b.value or (spread and not (gap.still or _still(a) or _still(b))):
        return found
    apart = gap.interval()
    return Interval(
        value,
        min(found.low, max(0.0, 1 + apart.low / b.value)),
        max(found.high, 1 + apart.high / b.value),
    )


def holm(p: Mapping[str, float]) -> dict[str, float]:
    """Holm's step-down correction (1979): the adjusted p of each, for all of them tested together.

    >>> holm({"a": 0.01, "b": 0.04, "c": 0.03})
    {'a': 0.03, 'b': 0.06, 'c': 0.06}
    """
    adjusted: dict[str, float] = {}
    highest = 0.0
    for rank, name in enumerate(sorted(p, key=lambda name: p[name])):
        highest = max(highest, min(1.0, (len(p) - rank) * p[name]))
        adjusted[name] = highest
    return {name: adjusted[name] for name in p}
