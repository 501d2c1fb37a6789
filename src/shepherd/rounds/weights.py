"""What an update may count for in the mean: the run file bounds it, and no client outweighs the rest.

A client says its own weight, so the server checks it against what was asked (law 6). What is left to a
client's word (how many examples it holds) cannot make the mean its own, since `federation.max_share` caps
its part:

    w_k  <-  min(w_k, c),    c the largest number with  c <= s sum_j min(w_j, c),    s = max(max_share, 1 / n)

over the n usable updates of a round. Updates that cannot reach the cap any more pass at once, so at most
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
"""More than the tokens of any visit: a larger weight is a mistake, or a bid to own the mean."""
MAX_SHARE = 0.5
"""The default of `federation.max_share`: no client counts for more than all others together."""
ROUNDING = 1e-9
"""Relative, of a sum of weights: what is this close to the cap is at it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Allowed:
    """What a client may say of its visit."""

    least: float = 0.0
    """Of a weight; above 0 in any case."""
    most: float = MAX_WEIGHT
    whole: bool = False
    """Whether a weight is a whole number."""
    by: str = ""
    """What was asked for, for a sentence."""
    counts: Mapping[str, float] = field(default_factory=dict)
    """The most that the metrics of this name can be; they are 0 at least."""


Allow = Callable[[ClientInfo], Allowed]
ANYTHING = Allowed()


def anything(client: ClientInfo) -> Allowed:
    """Where nobody knows what was asked: any weight in (0, MAX_WEIGHT]."""
    return ANYTHING


def allowing(settings: RunSettings) -> Allow:
    """What each client may say, by the visit that the run file asks of it."""
    tuning, weights = settings.tuning, settings.federation.weights

    def allow(client: ClientInfo) -> Allowed:
        examples = _taken(tuning, client.examples)
        tokens = examples * settings.data.max_tokens
        steps = examples if tuning.max_steps is None else tuning.max_steps
        counts = {"examples": examples, "steps": steps, "tokens": tokens, "trained_tokens": tokens}
        size = float(max(1, client.examples))
        most = {"examples": examples, "tokens": tokens, "size": size, "equal": 1.0}[weights]
        least = most if weights in ("size", "equal") else 1.0
        by = f'federation.weights = "{weights}"'
        return Allowed(least=least, most=min(most, MAX_WEIGHT), whole=True, by=by, counts=counts)

    return allow


def _taken(tuning: TuningTable, examples: int) -> float:
    """Examples of one visit, at most; see `data.cursor.visit`.

    A site may take the last batch of an epoch, if it is short, with the one before it.
    """
    batch = tuning.batch_size
    if tuning.max_steps is not None:
        ends = 1 + (tuning.max_steps - 1) // max(1, examples // batch)  # of epochs that a visit meets
        return float(tuning.max_steps * batch + ends * (batch - 1))
    return float(max(1, math.ceil((tuning.epochs or 1.0) * examples)) + batch - 1)


@dataclass(slots=True)
class Shares:
    """The weights of a round so far, as far as the cap depends on them one by one: its few largest."""

    share: float
    """The largest that one client may have, in (0, 1]."""
    count: int = 0
    _rest: float = 0.0
    _largest: list[float] = field(default_factory=list)  # ascending

    def add(self, weight: float) -> None:
        """Count one usable update."""
        self.count += 1
        insort(self._largest, weight)
        if len(self._largest) > math.floor(1 / self.share + ROUNDING) + 1:
            self._rest += self._largest.pop(0)

    def cap(self) -> float:
        """What a weight may be as far as is known; it only grows as updates come in. 0: nothing is known.

        >>> shares = Shares(0.5)
        >>> for weight in (6.0, 1.0, 2.0):
        ...     shares.add(weight)
        >>> shares.cap()
        3.0
        """
        return self._cap(self.share)

    def last_cap(self) -> float:
        """The cap once all updates are in: of fewer than 1 / share, each may count for as much as another."""
        return self._cap(max(self.share, 1 / max(1, self.count)))

    def _cap(self, share: float) -> float:
        descending = self._largest[::-1]
        for above, weight in enumerate(descending):  # so many are above the cap
            left = 1 - share * above
            if left <= ROUNDING:
                break
            cap = share * (self._rest + math.fsum(descending[above:])) / left
            if weight <= cap * (1 + ROUNDING):
                return cap
        return 0.0
