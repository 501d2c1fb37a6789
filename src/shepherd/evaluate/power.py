"""Number of questions that would settle a difference."""

from __future__ import annotations

import math
from statistics import NormalDist


def questions_needed(
    difference: float, spread: float, *, floor: float = 0.0, power: float = 0.8, level: float = 0.95
) -> int | None:
    """Number of questions that find a difference with probability `power`, two-sided at 1 - `level`.

    Args:
        difference: its size, in the measure's unit.
        spread: the standard deviation of one question's paired difference.
        floor: the variance of the difference that more questions do not reduce: that of the seeds.

    Returns:
        None if no number of questions is enough (the difference is 0, or the seeds' spread hides it), or
        if the spread is unknown (0 or infinite).

    Win rates against a half, whose spread is at most 0.5:

    >>> [questions_needed(rate - 0.5, 0.5) for rate in (0.60, 0.55, 0.53)]
    [197, 785, 2181]
    """
    normal = NormalDist()
    reach = normal.inv_cdf((1 + level) / 2) + normal.inv_cdf(power)
    room = (difference / reach) ** 2 - floor
    if room <= 0 or not 0 < spread < math.inf:
        return None
    return max(1, math.ceil(spread**2 / room))
