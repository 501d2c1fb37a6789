"""Clients on a simulated clock: how long each takes, when a round ends, and what comes late.

    seconds of a visit  =  its examples / the client's speed
    speed               =  examples_per_s exp(spread z_k) / (slow_factor if client k is slow else 1)

with z_k normal. No time is waited, and speeds come from the run's seed, so that a run can be repeated, and
resumed to the same bits. A round begins when the one before it ends; what the server does takes no time.

An update that would be refused does not count towards those that a round waits for, nor does a failure. Which
ones these are is known once they are made: so the clients are tuned that answer before the end that a round
would have if all of their updates counted, and those of a later end only if it comes to that.

A late update that is dropped is not made at all: its client stops when the round ends, and starts from the
same example in its next visit. One that is carried is made in the round that asked for it, and stored until
the round in which it comes, next to the clients' memories.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Protocol

import numpy as np

from shepherd.core import Broadcast, ClientInfo, Failure, Payload, Seeded, Update, Usable, any_update
from shepherd.core.payload import under
from shepherd.core.selection import share_of
from shepherd.core.stragglers import Stragglers
from shepherd.errors import DataError
from shepherd.federation.client_store import ClientStore, StoredMemory
from shepherd.settings import SpeedsTable

DELTA, EXTRA = "delta ", "extra "
"""Prefixes, in the store, of the tensors of an update's change and of its extra payload."""


class TimedClients(Protocol):
    """A federation in one process, which knows the length of each visit before it is made."""

    def clients(self) -> Sequence[ClientInfo]: ...

    def begin(self, round: int) -> None:
        """Discard what a round has changed so far."""

    def run_more(self, broadcast: Broadcast, cohort: Sequence[str]) -> Iterator[Update | Failure]:
        """Ask further clients of the round that was begun; what others have changed is not discarded."""

    def visit_examples(self, client: str) -> int:
        """Number of examples of a client's visit in the round that was begun, or raise DataError."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LateUpdate:
    """An update that has not come yet, without its tensors."""

    round: int
    """The round of the broadcast that it answers."""
    due: float
    """When it comes, on the clock."""
    weight: float
    metrics: Mapping[str, float]
    stored: StoredMemory


@dataclass(frozen=True, slots=True, kw_only=True)
class Clock:
    """The time, and what is on its way, between two rounds."""

    now: float = 0.0
    """Seconds since the start of the run."""
    late: Mapping[str, LateUpdate] = field(default_factory=dict)
    """Client -> the update that it has yet to send."""
    came: tuple[tuple[str, StoredMemory, int], ...] = ()
    """Stored updates that an earlier checkpoint may need: client, place, rounds finished when it had come."""

    def notes(self) -> dict[str, Any]:
        """The clock as JSON, for a checkpoint; `clock_from` reads it."""
        return asdict(self)


def clock_from(notes: Mapping[str, Any]) -> Clock:
    """The clock that `Clock.notes` wrote."""
    late = {
        client: LateUpdate(**{**each, "stored": StoredMemory(*each["stored"])})
        for client, each in notes["late"].items()
    }
    came = tuple((client, StoredMemory(*stored), round) for client, stored, round in notes["came"])
    return Clock(now=notes["now"], late=late, came=came)


def speeds(table: SpeedsTable, clients: Sequence[str], seed: int) -> dict[str, float]:
    """Examples that each client trains on in a second, drawn with the seed."""
    names = sorted(clients)
    rng = Seeded(seed).generator("speeds")
    usual = table.examples_per_s * np.exp(table.spread * rng.standard_normal(len(names)))
    many = share_of(len(names), table.slow_share) if table.slow_share else 0
    slow = set(rng.permutation(len(names))[:many].tolist())
    return {
        name: float(usual[place]) / (table.slow_factor if place in slow else 1.0)
        for place, name in enumerate(names)
    }


@dataclass(slots=True, kw_only=True)
class Clocked:
    """A Federation in which a round ends as `stragglers` says, on a simulated clock."""

    timed: TimedClients
    stragglers: Stragglers
    speeds: Mapping[str, float]
    """Examples that each client trains on in a second."""
    store: ClientStore
    """Where late updates are, one for each client."""
    keep: int = 1
    """Checkpoints that are kept, whose late updates stay in the store."""
    clock: Clock = field(default_factory=Clock)
    """As after the last finished round; `reached` has the round under way as well."""
    _round: int = -1
    _draft: Clock | None = None
    """The clock after the round under way, once its whole cohort has answered."""

    def clients(self) -> Sequence[ClientInfo]:
        """Information on every client, in order of their names."""
        return self.timed.clients()

    def at_work(self, round: int) -> dict[str, int]:
        """Clients that are not asked in a round, since an update of theirs is yet to come -> its round."""
        self._begin(round)
        return {client: each.round for client, each in sorted(self.clock.late.items())}

    def run(self, broadcast: Broadcast, cohort: Sequence[str]) -> Iterator[Update | Failure]:
        """Tune the cohort, as if every update counted; see `run_early`."""
        return self.run_early(broadcast, cohort, any_update)

    def run_early(
        self, broadcast: Broadcast, cohort: Sequence[str], usable: Usable
    ) -> Iterator[Update | Failure]:
        """Tune the cohort; yield what comes in time in its order, then late updates of earlier rounds.

        A client whose update comes after the end of the round is a late Failure. Where updates do not count
        and the round goes on for it, what comes in that time is yielded after the others.
        """
        self._begin(broadcast.round)
        self.timed.begin(broadcast.round)
        arrivals = self._arrivals(cohort)
        last, counting = max(arrivals.values(), default=self.clock.now), dict(arrivals)
        ends, rest = self.clock.now, list(cohort)
        while True:
            ends = self.stragglers.ends(list(counting.values()), last)
            in_time = [client for client in rest if arrivals.get(client, ends) <= ends]
            if not in_time:
                break
            rest = [client for client in rest if client not in in_time]
            for answer in self.timed.run_more(broadcast, in_time):
                if isinstance(answer, Failure) or not usable(answer):
                    counting.pop(answer.client, None)
                yield answer
                del answer
        waiting: dict[str, LateUpdate] = {}
        for answer in self.timed.run_more(broadcast, rest) if self.stragglers.carry and rest else ():
            if isinstance(answer, Update):
                waiting[answer.client] = self._stored(answer, arrivals[answer.client])
            else:
                yield answer
            del answer
        for client in rest:
            if client in waiting or not self.stragglers.carry:
                yield _late(client, arrivals[client] - ends)
        on_way = dict(sorted(self.clock.late.items()))
        came = {client: each for client, each in on_way.items() if each.due <= ends}
        for client, each in came.items():
            yield self._loaded(client, each)
        self._draft = Clock(
            now=ends,
            late={client: each for client, each in {**on_way, **waiting}.items() if client not in came},
            came=(
                *self.clock.came,
                *((client, each.stored, broadcast.round + 1) for client, each in came.items()),
            ),
        )

    def commit(self) -> None:
        """Apply the changes of the last round, if its whole cohort has answered."""
        if self._draft is None:
            return
        gone = [each for each in self._draft.came if each[2] <= self._round + 2 - self.keep]
        for client, stored, _ in gone:
            self.store.delete(client, stored)
        self.clock = replace(self._draft, came=tuple(each for each in self._draft.came if each not in gone))
        self._draft = None

    def reached(self) -> Clock:
        """The clock as it will be once the round under way is finished."""
        return self._draft or self.clock

    def _begin(self, round: int) -> None:
        if self._round < round:  # a later round is asked for only once this one is finished
            self.commit()
        self._round, self._draft = round, None

    def _arrivals(self, cohort: Sequence[str]) -> dict[str, float]:
        """When the update of each client comes; a client without one is left out."""
        found = {}
        for client in cohort:
            with suppress(DataError):
                seconds = self.timed.visit_examples(client) / self.speeds[client]
                found[client] = self.clock.now + seconds
        return found

    def _stored(self, update: Update, due: float) -> LateUpdate:
        parts = ((DELTA, update.delta), (EXTRA, update.extra))
        tensors = {prefix + name: tensor for prefix, part in parts for name, tensor in part.items()}
        return LateUpdate(
            round=update.round,
            due=due,
            weight=update.weight,
            metrics=dict(update.metrics),
            stored=self.store.put(update.client, update.round + 1, Payload(tensors)),
        )

    def _loaded(self, client: str, late: LateUpdate) -> Update:
        tensors = self.store.get(client, late.stored)
        return Update(
            round=late.round,
            clients=(client,),
            delta=Payload(under(DELTA, tensors)),
            extra=Payload(under(EXTRA, tensors)),
            weight=late.weight,
            metrics=late.metrics,
        )


def _late(client: str, seconds: float) -> Failure:
    return Failure(
        client=client,
        reason=f"its update came {seconds:.3g} s after the end of the round; raise stragglers.wait_s",
        late=True,
    )
