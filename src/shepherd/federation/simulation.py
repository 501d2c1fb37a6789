"""All clients on this machine, K at a time, over one base in memory, or one copy of it a worker."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from time import perf_counter

import numpy as np

from shepherd.core import (
    Algorithm,
    Broadcast,
    ClientInfo,
    Draws,
    Failure,
    Payload,
    Seeded,
    Transform,
    Update,
    seed_for,
)
from shepherd.data import cursor
from shepherd.data.tokens import Tokens
from shepherd.errors import DataError
from shepherd.federation import workers
from shepherd.federation.workers import Job, Workers
from shepherd.model import stack, tune
from shepherd.model.base import Base
from shepherd.model.tune import Tuned, Visit
from shepherd.progress import Progress, stage
from shepherd.settings import FederationTable, TuningTable


@dataclass(slots=True)
class Draft:
    """What a round changes, kept apart until the round is done."""

    round: int = -1
    complete: bool = False
    """Whether every client of the cohort has answered."""
    positions: dict[str, int] = field(default_factory=dict)
    memories: dict[str, Payload] = field(default_factory=dict)

    def begin(self, round: int) -> None:
        """Drop what is there."""
        self.round, self.complete = round, False
        self.positions, self.memories = {}, {}


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Simulation:
    """A Federation whose clients are datasets on this machine.

    `positions` (how many examples each client has taken, over all visits) and `memories` (what the
    algorithm lets a client keep) are those after the last round that is done: `commit` takes over what a
    round changed, and so does asking for a later round. A round that is interrupted, fails its quorum or
    is asked again leaves no trace in them (law 3). A checkpoint saves what `reached` gives.
    """

    base: Base
    datasets: Mapping[str, Tokens]
    algorithm: Algorithm
    transform: Transform
    tuning: TuningTable
    federation: FederationTable
    seed: int
    cohort_size: int
    workers: Workers | None = None
    """Processes to tune in; None is this one."""
    positions: dict[str, int] = field(default_factory=dict)
    memories: dict[str, Payload] = field(default_factory=dict)
    epochs: Mapping[str, float] = field(default_factory=dict)
    """Of a client's visit, where it is not as long as the run file says."""
    order_seed: int | None = None
    """Of the order of the examples, where it is not the run's seed: a site has one that nobody else knows."""
    min_batch: int = 1
    """Fewest examples of an optimiser step; see `data.cursor.visit`."""
    min_examples: int = 1
    """Fewest different examples of a visit; see `data.cursor.visit`."""
    cap_nats: float = math.inf
    """Most that one token counts in the loss that is reported; see `model.tune.tune`."""
    draws: Draws | None = None
    """Of the transforms' client half; by default a seed in the broadcast decides them, as law 2 wants it."""
    watch: Callable[[Progress], None] = lambda progress: None
    """Hears how far a round is, and ends it by raising."""
    draft: Draft = field(default_factory=Draft)

    def clients(self) -> Sequence[ClientInfo]:
        """Every client, by name."""
        return [ClientInfo(name=name, examples=len(self.datasets[name])) for name in sorted(self.datasets)]

    def run(self, broadcast: Broadcast, cohort: Sequence[str]) -> Iterator[Update | Failure]:
        """Tune the cohort, `cohort_size` clients at once; updates come in the cohort's order."""
        starts = range(0, len(cohort), self.cohort_size)
        return self.run_groups(broadcast, [cohort[start : start + self.cohort_size] for start in starts])

    def run_groups(self, broadcast: Broadcast, cohort: Sequence[Sequence[str]]) -> Iterator[Update | Failure]:
        """Tune a cohort whose groups are given, the clients of each at once; updates come in this order."""
        if self.draft.round < broadcast.round:  # nobody asks for a later round before this one is done
            self.commit()
        self.draft.begin(broadcast.round)
        groups = [self._group(broadcast, clients) for clients in cohort]
        meter = _Meter(
            round=broadcast.round + 1,
            rounds=self.federation.rounds,
            sizes=[len(group.clients) for group in groups],
            round_tokens=sum(_tokens(visit) for group in groups for visit in group.job.visits),
        )
        with stage("tuning", meter.round_tokens) as now:

            def watch(number: int, told: tune.Progress) -> None:
                meter.told[number] = told
                progress = meter.read()
                now.at(progress)
                self.watch(progress)

            now.at(meter.read())
            jobs = (group.job for group in groups)
            done = self.workers.tuned(jobs, watch) if self.workers else workers.here(self.base, jobs, watch)
            for group, tuned in zip(groups, done, strict=True):
                yield from self._answers(broadcast, group, tuned)
                meter.groups_done += 1
        self.draft.complete = True

    def commit(self) -> None:
        """Take over what the last round changed, where all its cohort has answered."""
        if self.draft.complete:
            self.positions.update(self.draft.positions)
            self.memories.update(self.draft.memories)
        self.draft.begin(self.draft.round)

    def reached(self) -> tuple[dict[str, int], dict[str, Payload]]:
        """Positions and memories as they will stand once the round under way is done."""
        draft = self.draft if self.draft.complete else Draft()
        return {**self.positions, **draft.positions}, {**self.memories, **draft.memories}

    def coverage(self) -> dict[str, float]:
        """The share of each client's examples that it has trained on (law 8), the last round included."""
        positions, _ = self.reached()
        return {
            client.name: cursor.coverage(client.examples, positions.get(client.name, 0))
            for client in self.clients()
        }

    def learning_rate(self, round: int) -> float:
        """Of a round, counted from 0, before the schedule within the visit."""
        return stack.round_rate(self.tuning, round, self.federation.rounds)

    def _group(self, broadcast: Broadcast, clients: Sequence[str]) -> _Group:
        visits, failures, positions = [], {}, {}
        for client in clients:
            try:
                visit, positions[client] = self._visit(broadcast, client)
                visits.append(visit)
            except DataError as error:
                failures[client] = Failure(client=client, reason=str(error))
        job = Job(
            broadcast=broadcast,
            algorithm=self.algorithm,
            visits=visits,
            tuning=self.tuning,
            learning_rate=self.learning_rate(broadcast.round),
            cap_nats=self.cap_nats,
        )
        return _Group(clients=clients, job=job, failures=failures, positions=positions)

    def _answers(
        self, broadcast: Broadcast, group: _Group, tuned: Sequence[Tuned]
    ) -> Iterator[Update | Failure]:
        self.draft.positions.update(group.positions)
        results = {result.client: result for result in tuned}
        for client in group.clients:
            failure = group.failures.get(client)
            yield failure or self._update(broadcast, results.pop(client))

    def _visit(self, broadcast: Broadcast, client: str) -> tuple[Visit, int]:
        data = self.datasets[client]
        if not len(data):
            raise DataError(f"client {client} has no example; give it some or leave it out")
        steps, position = cursor.visit(
            len(data),
            self.positions.get(client, 0),
            epochs=self.epochs.get(client, self.tuning.epochs),
            max_steps=None if client in self.epochs else self.tuning.max_steps,
            batch_size=self.tuning.batch_size,
            seed=seed_for(self.seed if self.order_seed is None else self.order_seed, "order", client),
            min_batch=self.min_batch,
            min_examples=self.min_examples,
        )
        memory = self.memories.get(client, Payload())
        start = self.algorithm.start(broadcast, memory, ClientInfo(name=client, examples=len(data)))
        visit = Visit(
            client=client,
            data=data,
            steps=steps,
            seed=seed_for(broadcast.seed, client),
            memory=memory,
            start=None if start is broadcast.adapter else start,
        )
        tune.require_trained(visit)
        return visit, position

    def _update(self, broadcast: Broadcast, tuned: Tuned) -> Update:
        self.draft.memories[tuned.client] = tuned.memory
        update = Update(
            round=broadcast.round,
            clients=(tuned.client,),
            delta=tuned.delta,
            extra=tuned.extra,
            weight=weight(self.federation, tuned, len(self.datasets[tuned.client])),
            metrics={
                "loss": tuned.loss,
                "examples": tuned.examples,
                "tokens": tuned.tokens,
                "trained_tokens": tuned.trained_tokens,
                "steps": tuned.steps,
            },
        )
        draws = self.draws or Seeded(seed_for(broadcast.seed, "transform", tuned.client))
        return self.transform.on_client(update, broadcast.transforms, draws)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Group:
    """Clients tuned at once, those that cannot be among them, and where the others then are in their data."""

    clients: Sequence[str]
    job: Job
    failures: Mapping[str, Failure]
    positions: Mapping[str, int]


@dataclass(slots=True, kw_only=True)
class _Meter:
    """Adds up the tunings of one round."""

    round: int
    rounds: int
    sizes: Sequence[int]
    """Clients of each group."""
    round_tokens: int
    groups_done: int = 0
    told: dict[int, tune.Progress] = field(default_factory=dict)
    began: float = field(default_factory=perf_counter)

    def read(self) -> Progress:
        """How far the round is, by what each group last said of itself."""
        sizes, done = self.sizes, self.groups_done
        going = {number: told for number, told in self.told.items() if number >= done}
        slowest = min(going.values(), key=lambda told: told.step, default=None)
        tokens = sum(each.tokens for each in self.told.values())
        return Progress(
            round=self.round,
            rounds=self.rounds,
            clients_done=sum(sizes[:done]),
            clients=sum(sizes),
            tokens=tokens,
            loss=sum(each.loss * each.tokens for each in self.told.values()) / max(1, tokens),
            seconds=perf_counter() - self.began,
            first=sum(sizes[:done]) + 1,
            last=sum(sizes[: max(going, default=done) + 1]),
            step=slowest.step if slowest else 0,
            steps=slowest.steps if slowest else 0,
            round_tokens=self.round_tokens,
        )


def _tokens(visit: Visit) -> int:
    """That a visit trains on."""
    return int(visit.data.lengths[np.concatenate(list(visit.steps))].sum()) if visit.steps else 0


def weight(federation: FederationTable, tuned: Tuned, size: int) -> float:
    """What a client that holds `size` examples to train on counts for in the mean."""
    match federation.weights:
        case "size":
            return float(size)
        case "examples":
            return float(tuned.examples)
        case "tokens":
            return float(tuned.trained_tokens)
        case "equal":
            return 1.0
