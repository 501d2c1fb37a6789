"""Bradley-Terry strengths of arms from preferences, and win rates at equal length."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from shepherd.errors import StatisticsError
from shepherd.evaluate.draws import draws
from shepherd.evaluate.logistic import chance, fit
from shepherd.evaluate.statistics import ALPHA, Interval, percentiles
from shepherd.evaluate.still import exact
from shepherd.evaluate.verdicts import Preferred, require

Floats = NDArray[np.float64]
_NORMAL = 1.959964
_TINY = 1e-9
FIT_RESAMPLES = 2_000  # for statistics that are fitted to each resample
_LENGTH_RIDGE = 1 / 5**2  # prior of the length's coefficient: normal with standard deviation 5


def bradley_terry(
    preferred: Sequence[Preferred], *, resamples: int = 10_000, seed: int = 0
) -> dict[str, Interval]:
    """Estimate strengths b of arms in log odds, mean 0: P(i preferred to j) = 1 / (1 + exp(b_j - b_i)).

    Bradley and Terry (1952), a tie being half a win each way. One more tie is added to each pair that was
    compared, so that an arm that always wins stays finite: with w wins to l the difference of two arms is
    log((w + 1/2) / (l + 1/2)). Intervals are from a bootstrap over the questions.

    Raises:
        StatisticsError: there are no verdicts, or some arms are not linked to others by any pair.
    """
    arms, pairs, wins, losses = _count(preferred)
    if not _are_linked(pairs, len(arms)):
        raise StatisticsError(
            "Some arms were never compared, not even through others; compare all of them with one arm."
        )
    clusters = draws(["all"] * len(wins), resamples=resamples, seed=seed).groups[0].counts
    counts = np.vstack([np.ones((1, len(wins))), clusters])  # (1 + R, Q): first the original questions
    weights = np.hstack([counts @ wins, counts @ losses]) + 0.5  # (1 + R, 2 * pairs)
    strengths = _strengths(pairs, len(arms), weights)
    errors = _errors(pairs, weights[0], strengths[0])
    return {arm: _strength_interval(strengths[:, at], errors[at]) for at, arm in enumerate(arms)}


def _strength_interval(strengths: Floats, error: float) -> Interval:
    """Interval of a strength (1 + R,); by its standard error if no resample changes it."""
    value = float(strengths[0])
    if np.ptp(strengths[1:]) > _TINY:
        return percentiles(value, strengths[1:])
    return Interval(value, value - _NORMAL * error, value + _NORMAL * error)


def _errors(pairs: Sequence[tuple[int, int]], weights: Floats, strengths: Floats) -> Floats:
    """Standard errors (arms,) of strengths with mean 0, from Fisher's information."""
    information = np.zeros((len(strengths), len(strengths)))
    for (i, j), games in zip(pairs, weights.reshape(2, -1).sum(axis=0), strict=True):
        won = 1 / (1 + math.exp(strengths[j] - strengths[i]))
        information[[i, j], [i, j]] += games * won * (1 - won)
        information[[i, j], [j, i]] -= games * won * (1 - won)
    return np.asarray(np.sqrt(np.diag(np.linalg.pinv(information, hermitian=True))))


def _strengths(pairs: Sequence[tuple[int, int]], arms: int, weights: Floats) -> Floats:
    """Strengths (R, arms): the first arm is fixed at 0 for the fit, then all are centred."""
    design = np.zeros((len(pairs), arms))
    for row, (i, j) in enumerate(pairs):
        design[row, i], design[row, j] = 1, -1
    outcome = np.repeat([1.0, 0.0], len(pairs))
    fitted = fit(np.vstack([design, design])[:, 1:], outcome, weights, np.zeros(arms - 1))
    strengths = np.hstack([np.zeros((len(weights), 1)), fitted])
    return np.asarray(strengths - strengths.mean(axis=1, keepdims=True))


def _count(
    preferred: Sequence[Preferred],
) -> tuple[list[str], list[tuple[int, int]], Floats, Floats]:
    """Arms, pairs of arms' indices, and wins and losses, each (questions, pairs)."""
    require(preferred)
    arms = sorted({arm for verdict in preferred for arm in (verdict.first, verdict.second)})
    pairs = sorted({_pair(arms, verdict) for verdict in preferred})
    questions = sorted({verdict.question for verdict in preferred})
    rows = {question: row for row, question in enumerate(questions)}
    columns = {pair: column for column, pair in enumerate(pairs)}
    wins = np.zeros((len(questions), len(pairs)))
    losses = np.zeros_like(wins)
    for verdict in preferred:
        place = rows[verdict.question], columns[_pair(arms, verdict)]
        result = verdict.result if verdict.first < verdict.second else 1 - verdict.result
        wins[place] += result
        losses[place] += 1 - result
    return arms, pairs, wins, losses


def _pair(arms: Sequence[str], verdict: Preferred) -> tuple[int, int]:
    first, second = sorted((verdict.first, verdict.second))
    return arms.index(first), arms.index(second)


def _are_linked(pairs: Sequence[tuple[int, int]], arms: int) -> bool:
    reached = {0}
    for _ in range(arms):
        reached |= {arm for pair in pairs if reached & set(pair) for arm in pair}
    return len(reached) == arms


def length_controlled(
    preferred: Sequence[Preferred], *, resamples: int = FIT_RESAMPLES, seed: int = 0
) -> Interval:
    """Estimate the first arm's win rate if both answered at equal length, from one pair's verdicts.

    P(first wins) = 1 / (1 + exp(-(t + f * tanh(d / sd(d))))), with d the first's length minus the second's;
    at d = 0 it is 1 / (1 + exp(-t)). This is Dubois et al. (2024, arXiv 2404.04475) for one pair, without
    their term for each instruction's difficulty, which takes the verdicts of many models to estimate. One
    tie is added at d = 0, and f has a normal prior with standard deviation 5, so that both stay finite.

    Raises:
        StatisticsError: there are no verdicts, or they belong to more than one pair.
    """
    require(preferred)
    if len({(verdict.first, verdict.second) for verdict in preferred}) > 1:
        raise StatisticsError(
            "A win rate at equal length is of one pair of arms; give the verdicts of one pair."
        )
    questions, row = np.unique([verdict.question for verdict in preferred], return_inverse=True)
    clusters = draws(["all"] * len(questions), resamples=resamples, seed=seed).groups[0].counts
    weights = np.ones((1 + resamples, len(preferred) + 1))  # first the original verdicts; last the tie
    weights[1:, :-1] = clusters[:, row]
    design = np.zeros((len(preferred) + 1, 2))
    design[:, 0] = 1
    design[:-1, 1] = _lengths(preferred)
    outcome = np.array([verdict.result for verdict in preferred] + [0.5])
    rates = chance(fit(design, outcome, weights, np.array([0.0, _LENGTH_RIDGE]))[:, 0])
    found = percentiles(float(rates[0]), rates[1:])
    wins = np.bincount(row, [verdict.result for verdict in preferred]) / np.bincount(row)  # (Q,)
    if np.ptp(wins) > _TINY:
        return found
    hidden = exact(len(questions), ALPHA)  # no resample shows a spread other than that of the lengths
    low, high = float(wins[0] * (1 - hidden)), float(wins[0] + hidden * (1 - wins[0]))
    return Interval(found.value, min(found.low, low), max(found.high, high))


def _lengths(preferred: Sequence[Preferred]) -> Floats:
    apart = np.array([float(verdict.length_first - verdict.length_second) for verdict in preferred])
    spread = float(apart.std())
    return np.tanh(apart / spread) if spread else np.zeros(len(apart))
