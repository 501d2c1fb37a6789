"""Stragglers: when a round ends without its slowest clients, and what a late update counts for.

    s(tau)  =  1 / sqrt(1 + tau)

is the weight of an update that is tau rounds late, as in FedBuff (Nguyen et al., arXiv 2106.06639): an update
of the round under way has tau = 0 and weight 1. FedBuff divides the weighted sum by the number of updates, so
that a late one moves the adapter less; here it is divided by the sum of the weights, as every mean of this
package is. So s weighs late updates against the others of their round, and a round of late updates alone is
not damped. The change of a late update is against the version that its client started from.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Stragglers:
    """How long a round waits for its clients, and what becomes of an update that comes later."""

    min_updates: int
    """Usable updates that a round waits for; all answers that it asked for, if they are fewer."""
    wait_s: float = 0.0
    """Seconds that the round goes on once it has them."""
    carry: bool = False
    """Whether a late update is part of the round in which it comes; it is dropped otherwise."""

    def ends(self, arrivals: Sequence[float], last: float) -> float:
        """When a round ends, in seconds: when all have answered at the latest.

        Args:
            arrivals: when the updates come that count. One that is refused does not: otherwise a client that
                is fast and sends nothing of use would end the round before the others have sent theirs.
            last: when the last answer comes, of whatever kind.

        >>> stragglers = Stragglers(min_updates=2, wait_s=5.0)
        >>> stragglers.ends([1.0, 40.0, 3.0], last=40.0), stragglers.ends([40.0, 3.0], last=60.0)
        (8.0, 45.0)
        """
        ordered = sorted(arrivals)
        if len(ordered) < self.min_updates:
            return last
        return min(ordered[self.min_updates - 1] + self.wait_s, last)


def staleness_weight(late: int) -> float:
    """Factor for the weight of an update that is this many rounds late, in (0, 1].

    >>> [round(staleness_weight(late), 3) for late in (0, 1, 3)]
    [1.0, 0.707, 0.5]
    """
    return 1.0 / math.sqrt(1 + late)
