"""Scores with intervals: a bootstrap clustered by question, stratified by category, paired over arms.

Values are (S, Q): one number per seed and question. The statistic is the mean over categories of the
weighted mean inside the category, averaged over seeds. One draw resamples the questions of each category
(`draws.py`) and moves the seeds (`seeds.py`), the same for every arm, so differences are paired. A category
whose questions all have one value shows no spread in a resample; its possible spread widens the interval
(`still.py`).
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
_BISECTIONS = 30  # of the search for a p: to one part in a billion
_NORMAL = 1.959964


@dataclass(frozen=True, slots=True)
class Interval:
    """A number and its 95% interval; NaN or infinite where a ratio has no finite value or bound."""

    value: float
    low: float
    high: float

    def row(self) -> dict[str, float | None]:
        """Convert to JSON values, with None for numbers that are not finite.

        >>> Interval(2.0, 1.5, float("inf")).row()
        {'value': 2.0, 'low': 1.5, 'high': None}
        """
        numbers = {"value": self.value, "low": self.low, "high": self.high}
        return {name: number if math.isfinite(number) else None for name, number in numbers.items()}

    def reaching(self, number: float) -> Interval:
        """Widen the interval to include a number; without a finite value it is returned as it is."""
        if not math.isfinite(self.value):
            return self
        return Interval(self.value, min(self.low, number), max(self.high, number))

    def scaled(self, factor: float) -> Interval:
        """Convert the interval to another unit; a negative factor reverses it."""
        low, high = sorted((self.low * factor, self.high * factor))
        return Interval(self.value * factor, low, high)


@dataclass(frozen=True, slots=True, eq=False)
class Sample:
    """Scores of one arm: each seed's (S,), and the questions' part of each draw (R,)."""

    draws: Draws
    values: Floats  # (S, Q)
    weights: Floats  # (Q,)
    seeds: Floats
    resampled: Floats
    span: Span

    @property
    def value(self) -> float:
        """Score of the arm: the mean over seeds."""
        return float(self.seeds.mean())


def sample(values: ArrayLike, draws: Draws, weights: ArrayLike | None = None, span: Span = SHARE) -> Sample:
    """Score one arm on the draws.

    Args:
        values: (S, Q), or (Q,) if the arm is the same for every seed.
        weights: (Q,), above 0, the questions' weights inside their category; for a loss, values are each
            example's mean loss and weights its trained tokens. None is equal weights.
        span: smallest and largest possible value; a value outside widens it.

    Raises:
        StatisticsError: a shape does not fit the draws, a value is not finite, or a weight is not above 0.
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
    shape = (draws.seeds, len(draws.strata))
    if given.ndim != 2 or given.shape[1] != shape[1] or given.shape[0] not in (1, shape[0]):
        raise StatisticsError(
            f"Scores of shape {given.shape} do not fit {shape[0]} seeds and {shape[1]} questions; "
            "give one number for each seed and question."
        )
    if not np.isfinite(given).all():
        place = np.argwhere(~np.isfinite(given))[0].tolist()
        raise StatisticsError(
            f"The score of seed {place[0]} on question {place[1]} is not a finite number; leave it out."
        )
    return np.broadcast_to(given, shape)


def _weights(weights: ArrayLike | None, questions: int) -> Floats:
    given = np.ones(questions) if weights is None else np.asarray(weights, dtype=np.float64)
    if given.shape != (questions,):
        raise StatisticsError(
            f"Weights of shape {given.shape} do not fit {questions} questions; give one weight per question."
        )
    if not (np.isfinite(given) & (given > 0)).all():
        raise StatisticsError("A question's weight is not above 0; leave out questions without weight.")
    return given


def _inside(group: Group, weights: Floats) -> Floats:
    return np.ones(len(group.places)) if group.single else weights[group.places]


def _means(values: Floats, weights: Floats, draws: Draws) -> Floats:
    """Each seed's statistic on the original questions, (S,)."""
    scores = np.zeros(len(values))
    for group in draws.groups:
        inside = _inside(group, weights)
        scores += group.share * (values[:, group.places] @ inside) / inside.sum()
    return scores


def _resampled(values: Floats, weights: Floats, draws: Draws) -> Floats:
    """The statistic on the questions of each draw, (R,), from values (Q,)."""
    scores = np.zeros(len(draws.contrasts))
    for group in draws.groups:
        inside = _inside(group, weights)
        columns = np.stack([inside * values[group.places], inside], axis=1)  # (n, 2)
        for rows in chunks(len(scores), len(inside)):
            sums = group.counts[rows].astype(np.float64) @ columns
            scores[rows] += group.share * sums[:, 0] / sums[:, 1]
    return scores


def _noise(values: Floats, weights: Floats, draws: Draws) -> float:
    """Variance of one seed's score that its questions' own noise causes (seed by question)."""
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
    """Both parts of each draw, (R,), clipped to the range of the values."""
    drawn = arm.resampled + luck * (arm.draws.contrasts @ (arm.seeds - arm.value))
    return np.clip(drawn, arm.values.min(), arm.values.max())


def percentiles(value: float, drawn: Floats, alpha: float = ALPHA) -> Interval:
    """Percentile interval of draws (R,) at 1 - `alpha`; NaN draws, from 0 / 0, are ignored.

    Its bounds are the order statistics at which the p of `two_sided` passes `alpha`.
    """
    kept = np.sort(drawn[~np.isnan(drawn)])
    if not len(kept):
        return Interval(value, math.nan, math.nan)
    cut = max(math.floor(alpha / 2 * (len(kept) + 1) + 1e-9) - 1, 0)
    return Interval(value, float(kept[cut]), float(kept[len(kept) - 1 - cut]))


def two_sided(drawn: Floats) -> float:
    """Two-sided bootstrap p of "it is 0": twice (1 + k) / (1 + R) of the rarer side; never 0.

    It is below 5% exactly if the percentile interval excludes 0.
    """
    rarer = min(int((drawn <= 0).sum()), int((drawn >= 0).sum()))
    return min(1.0, 2 * (1 + rarer) / (1 + len(drawn)))


def interval(arm: Sample) -> Interval:
    """Interval of an arm's score, never of zero width (`still.py`); Clopper and Pearson's at n of n right."""
    drawn = percentiles(arm.value, _drawn(arm, _luck(arm.values, arm.weights, arm.draws)))
    return _widen(drawn, slack(_still(arm), ALPHA, exact), arm.span)


def _still(arm: Sample) -> tuple[Still, ...]:
    return still(arm.values.mean(axis=0), arm.draws.groups, arm.span)


def _widen(drawn: Interval, by: tuple[float, float], span: Span) -> Interval:
    """Widen an interval by independent parts: roots of sums of squares (Zou and Donner, 2008)."""
    below, above = by
    value, low, high = drawn.value, drawn.low, drawn.high
    return Interval(
        value,
        max(span[0], value - math.hypot(value - low, below)) if below else low,
        min(span[1], value + math.hypot(high - value, above)) if above else high,
    )


def score(values: ArrayLike, draws: Draws, weights: ArrayLike | None = None) -> Interval:
    """Score an arm with values (S, Q) or (Q,), with its interval; see `sample` for errors."""
    return interval(sample(values, draws, weights))


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    """Comparison of two arms: first minus second, and first / second, on the same questions, seeds and draws.

    p: two-sided, from the interval: below 5% exactly if that excludes 0. It is never below the p of a sign
    test in which every differing question favours the same arm, and the interval is then widened to match:
    five questions settle nothing. questions_needed: number that would settle a difference of this size at 80%
    power; None if no number would, or if the questions show no spread and the measure has no bounds.
    alike: whether the two score the same on every question.
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
    """Compare values a and b, each (S, Q) or (Q,); see `sample` for errors."""
    return between(sample(a, draws, weights, span), sample(b, draws, weights, span))


def relative(
    a: ArrayLike, b: ArrayLike, draws: Draws, weights: ArrayLike | None = None, span: Span = SHARE
) -> Interval:
    """Ratio a / b with its interval, for measures that are never negative.

    NaN or infinite if b's score is 0; a bound is infinite if b is 0 in too many draws.
    """
    return ratio(sample(a, draws, weights, span), sample(b, draws, weights, span))


@dataclass(frozen=True, slots=True, eq=False)
class _Gap:
    """Difference a minus b: its draws (R,), and the categories without spread in it."""

    value: float
    drawn: Floats
    still: tuple[Still, ...]
    span: Span

    def interval(self, alpha: float = ALPHA) -> Interval:
        """Interval at 1 - alpha; of paired shares without spread it is Tango's (1998)."""
        return _widen(percentiles(self.value, self.drawn, alpha), slack(self.still, alpha, scored), self.span)

    def p(self) -> float:
        """Smallest alpha at which the interval excludes 0; `two_sided` if every category has spread."""
        if not self.still:
            return two_sided(self.drawn)
        low, high = 0.0, 1.0
        for _ in range(_BISECTIONS):
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
    """Compare two arms' samples on the same draws and weights, a minus b."""
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
        questions_needed=_questions_needed(a, b, gap, differing),
        alike=not differing,
    )


def _differing(contrast: Floats, draws: Draws) -> int:
    """Number of questions (S, Q) that differ at all; a sign test's p is at least 2 ** (1 - this)."""
    places = np.concatenate([group.places for group in draws.groups])
    return int((contrast[:, places] != 0).any(axis=0).sum())


def _questions_needed(a: Sample, b: Sample, gap: _Gap, differing: int) -> int | None:
    """Number of questions that settle a difference of this size, by the interval and by a sign test."""
    luck = _luck(a.values - b.values, a.weights, a.draws)
    more = math.hypot(*slack(gap.still, ALPHA, scored)) / math.sqrt(2) / _NORMAL
    spread = math.hypot(float((a.resampled - b.resampled).std()), more)
    found = questions_needed(
        gap.value,
        spread * math.sqrt(a.draws.questions),
        floor=of_seeds.variance(a.seeds - b.seeds, luck),
    )
    least = 1 + math.ceil(math.log2(1 / ALPHA))  # differing questions, all in favour of one arm
    return None if found is None else max(found, math.ceil(least * a.draws.questions / max(1, differing)))


def ratio(a: Sample, b: Sample) -> Interval:
    """Ratio a / b of two arms' samples on the same draws, for measures that are never negative.

    If a category, or the ratio, shows no spread, the interval is at least that of the difference over b's
    score.
    """
    luck = 1.0
    if a.value and b.value:
        luck = _luck(a.values / a.value - b.values / b.value, a.weights, a.draws)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        value = float(np.float64(a.value) / np.float64(b.value))
        found = percentiles(value, _drawn(a, luck) / _drawn(b, luck))
    gap = _gap(a, b)
    spread = found.low < found.high  # none if a / b is the same for every question
    if not b.value or (spread and not (gap.still or _still(a) or _still(b))):
        return found
    apart = gap.interval()
    return Interval(
        value,
        min(found.low, max(0.0, 1 + apart.low / b.value)),
        max(found.high, 1 + apart.high / b.value),
    )


def holm(p: Mapping[str, float]) -> dict[str, float]:
    """Adjust p values for being tested together, by Holm's step-down correction (1979).

    >>> holm({"a": 0.01, "b": 0.04, "c": 0.03})
    {'a': 0.03, 'b': 0.06, 'c': 0.06}
    """
    adjusted: dict[str, float] = {}
    highest = 0.0
    for rank, name in enumerate(sorted(p, key=lambda name: p[name])):
        highest = max(highest, min(1.0, (len(p) - rank) * p[name]))
        adjusted[name] = highest
    return {name: adjusted[name] for name in p}
