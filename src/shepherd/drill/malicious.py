"""A federation of which some clients are bad."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from shepherd.core import Broadcast, ClientInfo, Failure, Federation, Update, seed_for
from shepherd.drill.attacks import Attack


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Malicious:
    """A `Federation` whose bad clients send what an attack makes of their updates."""

    inner: Federation
    bad: frozenset[str]
    attack: Attack
    seed: int

    def clients(self) -> Sequence[ClientInfo]:
        """See `Federation`."""
        return self.inner.clients()

    def run(self, broadcast: Broadcast, cohort: Sequence[str]) -> Iterator[Update | Failure]:
        """See `Federation`."""
        for answer in self.inner.run(broadcast, cohort):
            if isinstance(answer, Update) and answer.client in self.bad:
                rng = np.random.default_rng(seed_for(self.seed, broadcast.round, answer.client))
                answer = self.attack.on_update(answer, broadcast, rng)
            yield answer
            del answer


def chosen(clients: Sequence[str], share: float, seed: int) -> frozenset[str]:
    """A share of the clients, rounded to a whole number, drawn by a seed.

    >>> len(chosen([f"c{k}" for k in range(10)], 0.3, seed=0))
    3
    """
    count = math.floor(share * len(clients) + 0.5)
    drawn = np.random.default_rng(seed_for(seed, "bad")).permutation(sorted(clients))
    return frozenset(drawn[:count].tolist())
