"""A federation of which some clients are bad."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from shepherd.core import (
    Broadcast,
    ClientInfo,
    Draws,
    Failure,
    Federation,
    Payload,
    Transform,
    Update,
    seed_for,
)
from shepherd.drill.attacks import Attack
from shepherd.rounds.weights import Allow


def corrupted(transform: Transform, bad: frozenset[str], attack: Attack, seed: int) -> Transform:
    """The transform with a client half that is given what an attack makes of a bad client's update."""

    def remember(
        update: Update, public: Any, draws: Draws, broadcast: Broadcast, memory: Payload
    ) -> tuple[Update, Payload]:
        if update.client in bad:
            rng = np.random.default_rng(seed_for(seed, broadcast.round, update.client))
            update = attack.on_update(update, broadcast, rng)
        return transform.at_client(update, public, draws, broadcast, memory)

    return replace(transform, remember=remember)


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Malicious:
    """A `Federation` whose bad clients send what an attack makes of their updates as they travel."""

    inner: Federation
    bad: frozenset[str]
    attack: Attack
    allow: Allow
    """What each client may report."""

    def clients(self) -> Sequence[ClientInfo]:
        """See `Federation`."""
        return self.inner.clients()

    def run(self, broadcast: Broadcast, cohort: Sequence[str]) -> Iterator[Update | Failure]:
        """See `Federation`."""
        infos = {info.name: info for info in self.clients()}
        for answer in self.inner.run(broadcast, cohort):
            if isinstance(answer, Update) and answer.client in self.bad:
                answer = self.attack.on_sent(answer, self.allow(infos[answer.client]).most)
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
