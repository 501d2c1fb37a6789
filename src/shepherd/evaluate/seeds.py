"""Training seeds as a random effect: what the luck of training adds to an interval, from few seeds.

Resampling three seeds like questions gives an interval that is far too narrow: if the seeds cause the whole
spread it covers in 75 to 80 cases of 100, not in 95. Here the seeds' part of a draw is
normal, as wide at its 95% quantiles as Student's t with S - 1 degrees of freedom, and only for that part
of the spread between seeds that the questions' own noise does not explain (a variance component).
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

_NORMAL = 1.959964
# two-sided 5% quantiles of Student's t, 1 to 9 degrees of freedom
_STUDENT = (12.706205, 4.302653, 3.182446, 2.776445, 2.570582, 2.446912, 2.364624, 2.306004, 2.262157)


def contrasts(resamples: int, seeds: int, rng: np.random.Generator) -> Floats:
    """Draw weights (resamples, seeds), each row summing to 0, that turn the seeds' scores into deviations.

    For scores with sample standard deviation s, the weighted sums are normal with mean 0; 95% of them lie
    within t * s / sqrt(seeds), t being Student's two-sided 5% quantile. One seed: all zero.
    """
    if seeds == 1:
        return np.zeros((resamples, 1))
    normal = rng.standard_normal((resamples, seeds))
    centred = normal - normal.mean(axis=1, keepdims=True)
    return np.asarray(centred * (student(seeds - 1) / _NORMAL / math.sqrt(seeds * (seeds - 1))))


def student(freedom: int) -> float:
    """The two-sided 5% quantile of Student's t: from a table, then by Cornish and Fisher's expansion.

    >>> round(student(2), 3), round(student(30), 3)
    (4.303, 2.042)
    """
    if freedom <= len(_STUDENT):
        return _STUDENT[freedom - 1]
    z, n = _NORMAL, freedom
    return z + (z**3 + z) / (4 * n) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * n**2)


def luck(scores: Floats, noise: float) -> float:
    """Share in [0, 1] of the spread between the seeds' scores (S,) that the seeds themselves cause.

    Args:
        noise: the variance of one seed's score that comes from its questions' noise.
    """
    if len(scores) == 1:
        return 0.0
    spread = float(np.var(scores, ddof=1))
    return math.sqrt(1 - noise / spread) if spread > noise else 0.0


def variance(scores: Floats, share: float) -> float:
    """Variance of the seeds' part of a draw, with `share` from `luck`."""
    if len(scores) == 1:
        return 0.0
    wide = student(len(scores) - 1) / _NORMAL
    return float(share**2 * wide**2 * np.var(scores, ddof=1) / len(scores))
