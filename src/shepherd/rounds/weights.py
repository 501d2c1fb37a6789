"""Bounds on an update's weight in the mean: what the run file allows, and that no client outweighs the rest.

A client states its own weight, so the server checks it against what was asked (law 6). The server cannot
check how many examples a client holds, so `federation.max_share` caps its share of the mean:

    w_k  <-  min(w_k, c),    c the largest number with  c <= s sum_j min(w_j, c),    s = max(max_share, 1 / n)

over the n usable updates of a round. Updates that can no longer reach the cap pass at once, so at most
1 / max_share of them wait for the end of the round, however large the cohort is (law 5).
"""

from __future__ import annotations

import math
from bisect import insort
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from shepherd.core import ClientInfo
from shepherd.settings import RunSettings, TuningTable

MAX_WEIGHT = 1e12
"""Largest weight of an update, above the tokens of any visit: a larger one is a mistake or an attack."""
MAX_SHARE = 0.5
"""Default of `federation.max_share`: no client counts for more than all others together."""
WEIGHT_TOLERANCE = 1e-9
"""Relative tolerance of sums of weights: a weight this close to the cap is at it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Allowed:
    """What a client may report of its visit."""

    least: float = 0.0
    """Smallest weight; it must be above 0 in any case."""
    most: float = MAX_WEIGHT
    """Largest weight."""
    whole: bool = False
    """Whether the weight must be a whole number."""
    by: str = ""
    """The setting that decides this, for messages."""
    counts: Mapping[str, float] = field(default_factory=dict)
    """Metric -> its largest value; the smallest is 0."""


Allow = Callable[[ClientInfo], Allowed]
ANYTHING = Allowed()


def allow_any(client: ClientInfo) -> Allowed:
    """Allow any weight in (0, MAX_WEIGHT], if the visit that was asked is not known."""
    return ANYTHING


def allowed_by(settings: RunSettings) -> Allow:
    """What each client may report, by the visit that the run file asks of it."""
    tuning, weights = settings.tuning, settings.federation.weights

    def allow(client: ClientInfo) -> Allowed:
        examples = _max_examples(tuning, client.examples)
        tokens = examples * settings.data.max_tokens
        steps = examples if tuning.max_steps is None else tuning.max_steps
        counts = {"examples": examples, "steps": steps, "tokens": tokens, "trained_tokens": tokens}
        size = float(max(1, client.examples))
        most = {"examples": examples, "tokens": tokens, "size": size, "equal": 1.0}[weights]
        least = most if weights in ("size", "equal") else 1.0
        by = f'federation.weights = "{weights}"'
        return Allowed(least=least, most=min(most, MAX_WEIGHT), whole=True, by=by, counts=counts)

    return allow


def _max_examples(tuning: TuningTable, examples: int) -> float:
    """Most examples of one visit; see `data.cursor.visit`.

    A site may merge the last batch of an epoch, if it is short, into the one before it.
    """
    batch = tuning.batch_size
    if tuning.max_steps is not None:
        ends = 1 + (tuning.max_steps - 1) // max(1, examples // batch)  # of epochs that a visit meets
        return float(tuning.max_steps * batch + ends * (batch - 1))
    return float(max(1, math.ceil((tuning.epochs or 1.0) * examples)) + batch - 1)


@dataclass(slots=True)
class Shares:
    """The weights of a round so far: the few largest, on which the cap depends, and the sum of the rest."""

    share: float
    """Largest share that one client may have, in (0, 1]."""
    count: int = 0
    _rest: float = 0.0
    _largest: list[float] = field(default_factory=list)  # ascending

    def add(self, weight: float) -> None:
        """Add the weight of one client with a usable update."""
        self.count += 1
        insort(self._largest, weight)
        if len(self._largest) > math.floor(1 / self.share + WEIGHT_TOLERANCE) + 1:
            self._rest += self._largest.pop(0)

    def cap(self) -> float:
        """Lower bound of the cap, which only grows as updates come in; 0 if nothing is known yet.

        >>> shares = Shares(0.5)
        >>> for weight in (6.0, 1.0, 2.0):
        ...     shares.add(weight)
        >>> shares.cap()
        3.0
        """
        return self._cap(self.share)

    def last_cap(self) -> float:
        """The cap once all updates are in; of fewer than 1 / share, each may count for as much as another."""
        return self._cap(max(self.share, 1 / max(1, self.count)))

    def _cap(self, share: float) -> float:
        descending = self._largest[::-1]
        for above, weight in enumerate(descending):  # this many are above the cap
            left = 1 - share * above
            if left <= WEIGHT_TOLERANCE:
                break
            cap = share * (self._rest + math.fsum(descending[above:])) / left
            if weight <= cap * (1 + WEIGHT_TOLERANCE):
                return cap
        return 0.0
