"""Uncertainty of a category whose questions all have one value, of which a resample shows no spread.

If n questions all gave v, a share m of questions like them may give another value and be missed: at most
1 - (alpha / 2) ** (1 / n), exactly (Clopper and Pearson, 1934), or z^2 / (n + z^2) by a score test
(Wilson, 1927). What they give lies between the least and the largest value there can be, low and high, so
the mean lies between v - m (v - low) and v + m (high - v). For right and wrong answers that is each of the
two authors' interval at n of n; for a paired difference of them, which goes from -1 to 1, it is Tango's score
interval (1998) at n of n and at 0 of n.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from shepherd.evaluate.draws import Group

Span = tuple[float, float]
SHARE: Span = (0.0, 1.0)
LOSS: Span = (0.0, math.inf)
SIGNED: Span = (-math.inf, math.inf)
_EQUAL_WITHIN = 1e-9
Missed = Callable[[int, float], float]
"""(questions, alpha) -> the share of questions that may have another value, though none of these has."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Still:
    """One or several categories whose questions all gave `value`; `share` is their part of the statistic."""

    share: float
    questions: int
    value: float
    span: Span


def exact(questions: int, alpha: float) -> float:
    """Clopper and Pearson's upper bound for 0 of n.

    >>> round(exact(10, 0.05), 4)
    0.3085
    """
    return float(1 - (alpha / 2) ** (1 / questions))


def scored(questions: int, alpha: float) -> float:
    """Wilson's upper bound for 0 of n; 1 for a single question, of which nothing is known.

    >>> round(scored(10, 0.05), 4), scored(1, 0.05)
    (0.2775, 1.0)
    """
    z = NormalDist().inv_cdf(1 - alpha / 2) if alpha < 1 else 0.0
    return 1.0 if questions == 1 else z * z / (questions + z * z)


def still(values: NDArray[np.float64], groups: Sequence[Group], span: Span) -> tuple[Still, ...]:
    """Find the categories without spread in values (Q,); those with the same value count as one.

    Otherwise many small categories, each with a large uncertainty, would together have more than all of them
    can have. On a side without a bound of the measure, the range of these questions is used; if all questions
    are alike, that side is infinite.
    """
    every = np.concatenate([values[group.places] for group in groups])
    spread = not _alike(every)
    low = span[0] if math.isfinite(span[0]) else float(every.min()) if spread else -math.inf
    high = span[1] if math.isfinite(span[1]) else float(every.max()) if spread else math.inf
    alike: dict[float, list[Group]] = {}
    for group in groups:
        if _alike(values[group.places]):
            alike.setdefault(round(float(values[group.places].mean()), 9), []).append(group)
    return tuple(
        Still(
            share=sum(group.share for group in those),
            questions=sum(len(group.places) for group in those),
            value=float(values[those[0].places].mean()),
            span=(low, high),
        )
        for those in alike.values()
    )


def _alike(values: NDArray[np.float64]) -> bool:
    return bool(np.ptp(values) <= _EQUAL_WITHIN * max(1.0, float(np.abs(values).max())))


def slack(found: Iterable[Still], alpha: float, missed: Missed) -> tuple[float, float]:
    """How far the mean may be below and above, at 1 - alpha: roots of the sums of squares."""
    parts = [(each, each.share * missed(each.questions, alpha)) for each in found]
    return (
        math.hypot(*(part * (each.value - each.span[0]) for each, part in parts)),
        math.hypot(*(part * (each.span[1] - each.value) for each, part in parts)),
    )
