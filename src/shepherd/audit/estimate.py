"""What scores of canaries and of members prove: bounds of epsilon, and how well an attack tells them apart.

A canary is included in the training data or not by a fair coin of its own. An attack scores each canary, high
where it thinks that it was included. Steinke et al. (2023, arXiv 2305.08846) turn its right guesses in one
training run into a lower bound of epsilon that holds for every mechanism; Mahloujifar et al. (2024, arXiv
2410.22235) into a larger one for mechanisms whose trade-off curve is that of Gaussian noise. This is the only
module of the package that needs scipy for statistics.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from shepherd.errors import SettingsError, StatisticsError
from shepherd.evaluate.statistics import Interval
from shepherd.version import install

Floats = NDArray[np.float64]
ALPHA = 0.05
PLANS = ((3 / 8, 3 / 8), (1 / 4, 1 / 4), (1 / 4, 0.0), (1 / 16, 0.0))
"""Which canaries are guessed: the share with the highest scores as included, and that with the lowest as not.
Chosen before any score is seen; the bound is the best of them, each at a fourth of the error allowed."""
SHARES = (1 / 2, 1 / 4, 1 / 16)
"""Shares of the canaries, with the highest scores, that are called included for Clopper and Pearson's."""
MAX_EPSILON, TOLERANCE = 64.0, 1e-6
EDGE = 1e-12
RESAMPLES, CHUNK = 2000, 2**22
RATES = (0.01, 0.001)
"""False-positive rates at which attacks are compared."""


def require() -> None:
    """Raise SettingsError, with what to install, if scipy is missing."""
    if not find_spec("scipy"):
        raise SettingsError(f"an audit requires the package scipy; install with {install('privacy')}")


def one_run_p(canaries: int, guesses: int, correct: int, epsilon: float, delta: float) -> float:
    """Largest chance of this many right guesses, or more, in one run of a mechanism with this epsilon, delta.

    Theorem 5.2 of arXiv 2305.08846: the right guesses are dominated by a binomial number, but for what delta
    adds.

    Args:
        canaries: how many there are, each included by a fair coin.
        guesses: how many of them are guessed; the attack abstains on the others.
        correct: right guesses.
    """
    from scipy.stats import binom

    right = 1 / (1 + math.exp(-epsilon))
    above = float(binom.sf(correct - 1, guesses, right))
    if not delta or not correct:
        return min(1.0, above)
    missed = np.arange(1, correct + 1)
    between = binom.sf(correct - missed - 1, guesses, right) - above  # P(correct > X >= correct - i)
    return min(1.0, above + 2 * canaries * delta * float(np.max(between / missed)))


def epsilon_one_run(
    canaries: int, guesses: int, correct: int, *, delta: float, significance: float = ALPHA
) -> float:
    """Lower bound of epsilon from the guesses of one run; it holds whatever the mechanism is.

    Args:
        delta: the delta of the claim.
        significance: chance that a private mechanism exceeds the bound.
    """
    return _largest(
        lambda epsilon: one_run_p(canaries, guesses, correct, epsilon, delta) <= significance, MAX_EPSILON
    )


def refutes_gaussian(canaries: int, guesses: int, correct: int, mu: float, significance: float) -> bool:
    """Whether this many right guesses refute that the mechanism is mu-Gaussian differentially private.

    Algorithm 3 of arXiv 2410.22235: `right` and `wrong` bound, from the last guess to the first, the chance
    that at least this many guesses are right, each given by the trade-off curve from the one before.
    """
    from scipy.special import ndtr, ndtri

    right = significance * correct / canaries
    wrong = significance * (guesses - correct) / canaries
    for left in range(correct - 1, -1, -1):
        reached = max(wrong, float(ndtr(ndtri(min(right, 1.0)) - mu)))
        if reached == wrong:  # neither can change from here
            break
        right, wrong = right + left / (guesses - left) * (reached - wrong), reached
    return right + wrong > guesses / canaries


def epsilon_one_run_gaussian(
    canaries: int, guesses: int, correct: int, *, delta: float, significance: float = ALPHA
) -> float:
    """Lower bound of epsilon from the guesses of one run of a mechanism that is as private as Gaussian noise.

    It finds the largest mu whose curve the guesses refute, and converts it. A mechanism with another curve
    may exceed it and still be (epsilon, delta)-private.
    """
    mu = _largest(
        lambda mu: refutes_gaussian(canaries, guesses, correct, mu, significance), 2 * math.sqrt(MAX_EPSILON)
    )
    return gaussian_epsilon(mu, delta)


def gaussian_epsilon(mu: float, delta: float) -> float:
    """Epsilon at delta of Gaussian noise with sensitivity / standard deviation `mu` (Balle and Wang, 2018).

    >>> round(gaussian_epsilon(1.0, 1e-5), 4)
    4.3772
    """
    from scipy.special import log_ndtr

    def leaks(epsilon: float) -> bool:
        first = float(log_ndtr(mu / 2 - epsilon / mu))
        second = epsilon + float(log_ndtr(-mu / 2 - epsilon / mu))
        return first > second and first + math.log1p(-math.exp(second - first)) > math.log(delta)

    return _largest(leaks, MAX_EPSILON) if mu > 0 else 0.0


def epsilon_clopper_pearson(
    true: int, included: int, false: int, excluded: int, *, delta: float, significance: float = ALPHA
) -> float:
    """Epsilon from the two error rates of an attack, where every canary has a training run of its own.

    With all canaries in one run it is a figure to compare with others' and no proof, since they are not
    independent.

    Args:
        true: included canaries that the attack calls included, of `included`.
        false: canaries left out that it calls included, of `excluded`.
    """
    low, high = 1 - _most(included - true, included, significance), _most(false, excluded, significance)
    return max(0.0, math.log(low - delta) - math.log(high)) if low > delta else 0.0


def _most(count: int, of: int, significance: float) -> float:
    """Clopper and Pearson's one-sided upper bound, at half the significance."""
    from scipy.stats import beta

    return 1.0 if count >= of else float(beta.ppf(1 - significance / 2, count + 1, of - count))


def _largest(holds: Callable[[float], bool], most: float) -> float:
    """The largest number up to `most` for which something holds that holds for all smaller ones; else 0."""
    low, high = 0.0, 1.0
    if not holds(low + TOLERANCE):
        return 0.0
    while holds(high):
        if high >= most:
            return most
        low, high = high, min(2 * high, most)
    while high - low > TOLERANCE:
        middle = (low + high) / 2
        low, high = (middle, high) if holds(middle) else (low, middle)
    return low


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """Lower bounds of epsilon at the 95% level, and how many canaries and right guesses they rest on."""

    canaries: int
    included: int
    delta: float
    one_run: float
    """Holds for every mechanism."""
    gaussian: float
    """Holds for mechanisms that are as private as Gaussian noise."""
    clopper_pearson: float
    """No proof from one run; for comparison with retrained attacks."""

    def row(self) -> dict[str, Any]:
        """As JSON has it."""
        return {name: getattr(self, name) for name in self.__slots__}


def bounds(scores: ArrayLike, included: ArrayLike, delta: float) -> Bounds:
    """Lower bounds of epsilon from the scores of canaries.

    Args:
        scores: a number for each canary, high where the attack thinks that it was included, (m,). Equal ones
            are ranked by their place, so the order of the canaries must not depend on the coins.
        included: whether it was, (m,).
        delta: in (0, 1).

    Raises:
        StatisticsError: there are no scores, or one is not finite.
        SettingsError: delta is not in (0, 1), or scipy is missing.
    """
    require()
    if not 0.0 < delta < 1.0:  # false for NaN, too
        raise SettingsError(f"delta is {delta}; give a number above 0 and below 1")
    values, coins = _finite(scores), np.asarray(included, dtype=bool)
    order = np.argsort(-values, kind="stable")
    return _bounds(tuple(coins[order].tolist()), delta)


@cache
def ceiling(included: int, excluded: int, delta: float) -> Bounds:
    """The bounds that an attack reaches with this many canaries if every one of its guesses is right."""
    return _bounds((True,) * included + (False,) * excluded, delta)


def _bounds(ranked: tuple[bool, ...], delta: float) -> Bounds:
    m, each = len(ranked), ALPHA / len(PLANS)
    tried = dict.fromkeys(_guessed(ranked))
    at = [_rates(ranked, share) for share in SHARES]
    inside = sum(ranked)
    return Bounds(
        canaries=m,
        included=inside,
        delta=delta,
        one_run=max(epsilon_one_run(m, *counts, delta=delta, significance=each) for counts in tried),
        gaussian=max(
            epsilon_one_run_gaussian(m, *counts, delta=delta, significance=each) for counts in tried
        ),
        clopper_pearson=max(
            epsilon_clopper_pearson(
                true, inside, false, m - inside, delta=delta, significance=ALPHA / len(at)
            )
            for true, false in at
        )
        if 0 < inside < m
        else 0.0,
    )


def _guessed(ranked: tuple[bool, ...]) -> Iterable[tuple[int, int]]:
    """Guesses and right guesses of each plan, on canaries from the highest score to the lowest."""
    for high, low in PLANS:
        top, bottom = max(1, round(high * len(ranked))), round(low * len(ranked))
        right = sum(ranked[:top]) + sum(not each for each in ranked[len(ranked) - bottom :])
        yield top + bottom, right


def _rates(ranked: tuple[bool, ...], share: float) -> tuple[int, int]:
    top = max(1, round(share * len(ranked)))
    return sum(ranked[:top]), top - sum(ranked[:top])


@dataclass(frozen=True, slots=True, kw_only=True)
class Attack:
    """How well a score tells members from others."""

    members: int
    others: int
    auc: Interval
    """Chance that a member scores higher than one of the others; 0.5 is guessing."""
    tpr: tuple[Interval | None, ...]
    """Share of members found at each of `RATES`; None where there are too few others to measure it."""

    def row(self) -> dict[str, Any]:
        """As JSON has it."""
        found = {
            f"tpr_{rate:g}": each.row() if each else None for rate, each in zip(RATES, self.tpr, strict=True)
        }
        return {"members": self.members, "others": self.others, "auc": self.auc.row(), **found}


def attack(members: ArrayLike, others: ArrayLike) -> Attack:
    """How well scores, high for members, tell members from others of the same distribution.

    Raises:
        StatisticsError: there are none of either, or a score is not finite.
        SettingsError: scipy is missing.
    """
    require()
    inside, outside = _finite(members), _finite(others)
    return Attack(
        members=len(inside),
        others=len(outside),
        auc=auc(inside, outside),
        tpr=tuple(tpr(inside, outside, rate) for rate in RATES),
    )


def auc(members: Floats, others: Floats) -> Interval:
    """Area under the ROC curve, with Newcombe's interval (2006, method 5), which has a width at 0 and 1."""
    from scipy.optimize import brentq
    from scipy.stats import mannwhitneyu, norm

    m, n = len(members), len(others)
    value = float(mannwhitneyu(members, others).statistic) / (m * n)
    z, mean = float(norm.isf(ALPHA / 2)), (m + n) / 2 - 1

    def beyond(area: float) -> float:
        spread = 1 + mean * ((1 - area) / (2 - area) + area / (1 + area))
        return (area - value) ** 2 - z * z * area * (1 - area) * spread / (m * n)

    # not from 1 or 0 itself, where the equation has another root
    low = float(brentq(beyond, 0.0, value - EDGE)) if value > 0 else 0.0
    high = float(brentq(beyond, value + EDGE, 1.0)) if value < 1 else 1.0
    return Interval(value, low, high)


def tpr(members: Floats, others: Floats, rate: float) -> Interval | None:
    """Share of members above all but `rate` of the others; None if one of the others is more than that.

    The interval holds both Clopper and Pearson's at this threshold and the bootstrap's, which draws the
    threshold again.
    """
    from scipy.stats import binomtest

    allowed = math.floor(rate * len(others) + 1e-9)
    if not allowed:
        return None
    found = _found(members[None], others[None], allowed)[0]
    exact = binomtest(round(found * len(members)), len(members)).proportion_ci(1 - ALPHA)
    drawn = _resampled(members, others, allowed)
    low, high = np.quantile(drawn, [ALPHA / 2, 1 - ALPHA / 2])
    return Interval(float(found), min(float(low), exact.low), max(float(high), exact.high))


def _found(members: Floats, others: Floats, allowed: int) -> Floats:
    """Share of members (R, m) above all but the `allowed` highest of the others (R, n), (R,)."""
    place = others.shape[1] - allowed - 1
    if place < 0:
        return np.ones(len(members))
    border = np.partition(others, place, axis=1)[:, place]
    return np.asarray((members > border[:, None]).mean(axis=1))


def _resampled(members: Floats, others: Floats, allowed: int) -> Floats:
    rng = np.random.default_rng(len(members))
    rows = max(1, CHUNK // (len(members) + len(others)))
    found = [
        _found(
            members[rng.integers(len(members), size=(size, len(members)))],
            others[rng.integers(len(others), size=(size, len(others)))],
            allowed,
        )
        for size in (min(rows, RESAMPLES - start) for start in range(0, RESAMPLES, rows))
    ]
    return np.concatenate(found)


def exposures(canaries: ArrayLike, others: ArrayLike) -> Floats:
    """Exposure of each canary (Carlini et al., 2019): log2 of the number of candidates over its rank, (m,).

    The candidates are the canary and the `others`, which were made like it and left out; a rank of 1 is the
    highest score. A canary that was not learned has 1.44 on average.

    >>> exposures([5.0, 1.5], [1, 2, 3]).round(2).tolist()
    [2.0, 0.42]
    """
    inside, outside = _finite(canaries), _finite(others)
    ranks = 1 + (outside >= inside[:, None]).sum(axis=1)
    return np.asarray(np.log2((len(outside) + 1) / ranks))


def _finite(scores: ArrayLike) -> Floats:
    values = np.asarray(scores, dtype=np.float64)
    if values.ndim != 1 or not len(values):
        raise StatisticsError("There are no scores to compare; give at least one of each kind.")
    if not np.isfinite(values).all():
        raise StatisticsError("A score is not a finite number; leave that example out.")
    return values
