"""All clients in this process, K at a time, over one base in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from time import perf_counter

from shepherd.core import Adapter, Algorithm, Broadcast, ClientInfo, Failure, Transform, Update, seed_for
from shepherd.data import cursor
from shepherd.data.tokens import Tokens
from shepherd.errors import DataError
from shepherd.model import stack, tune
from shepherd.model.base import Base
from shepherd.model.tune import Tuned, Visit
from shepherd.settings import FederationTable, TuningTable


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How far a round is. `tokens` and `seconds` are this round's; `loss` is the running mean, in nats."""

    round: int
    rounds: int
    clients_done: int
    clients: int
    tokens: int
    loss: float
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Simulation:
    """A Federation whose clients are datasets in this process.

    `positions` (how many examples each client has taken, over all visits) and `memories` (what the
    algorithm lets a client keep) change as rounds go by; a checkpoint saves both.
    """

    base: Base
    datasets: Mapping[str, Tokens]
    algorithm: Algorithm
    transform: Transform
    tuning: TuningTable
    federation: FederationTable
    seed: int
    cohort_size: int
    positions: dict[str, int] = field(default_factory=dict)
    memories: dict[str, Adapter] = field(default_factory=dict)
    watch: Callable[[Progress], None] = lambda progress: None

    def clients(self) -> Sequence[ClientInfo]:
        """Every client, by name."""
        return [ClientInfo(name=name, examples=len(self.datasets[name])) for name in sorted(self.datasets)]

    def run(self, broadcast: Broadcast, cohort: Sequence[str]) -> Iterator[Update | Failure]:
        """Tune the cohort, `cohort_size` clients at once; updates come in the cohort's order."""
        meter = _Meter(round=broadcast.round + 1, rounds=self.federation.rounds, clients=len(cohort))
        for start in range(0, len(cohort), self.cohort_size):
            together = cohort[start : start + self.cohort_size]
            yield from self._tuned_together(broadcast, together, lambda told: self.watch(meter.read(told)))
            meter.pass_on(len(together))

    def coverage(self) -> dict[str, float]:
        """The share of each client's examples that it has trained on (law 8)."""
        return {
            client.name: cursor.coverage(client.examples, self.positions.get(client.name, 0))
            for client in self.clients()
        }

    def learning_rate(self, round: int) -> float:
        """Of a round, counted from 0, before the schedule within the visit."""
        return stack.round_rate(self.tuning, round, self.federation.rounds)

    def _tuned_together(
        self, broadcast: Broadcast, clients: Sequence[str], watch: Callable[[tune.Progress], None]
    ) -> Iterator[Update | Failure]:
        visits, failures = [], {}
        positions = dict(self.positions)
        for client in clients:
            try:
                visit, positions[client] = self._visit(broadcast, client)
                visits.append(visit)
            except DataError as error:
                failures[client] = Failure(client=client, reason=str(error))
        rate = self.learning_rate(broadcast.round)
        tuned = tune.tune(
            self.base, broadcast, self.algorithm, visits, self.tuning, learning_rate=rate, watch=watch
        )
        self.positions.update(positions)
        results = {result.client: result for result in tuned}
        del tuned
        for client in clients:
            yield failures[client] if client in failures else self._update(broadcast, results.pop(client))

    def _visit(self, broadcast: Broadcast, client: str) -> tuple[Visit, int]:
        data = self.datasets[client]
        if not len(data):
            raise DataError(f"client {client} has no example; give it some or leave it out")
        steps, position = cursor.visit(
            len(data),
            self.positions.get(client, 0),
            epochs=self.tuning.epochs,
            max_steps=self.tuning.max_steps,
            batch_size=self.tuning.batch_size,
            seed=seed_for(self.seed, "order", client),
        )
        visit = Visit(
            client=client,
            data=data,
            steps=steps,
            seed=seed_for(broadcast.seed, client),
            memory=self.memories.get(client, Adapter()),
        )
        tune.require_trained(visit)
        return visit, position

    def _update(self, broadcast: Broadcast, tuned: Tuned) -> Update:
        self.memories[tuned.client] = tuned.memory
        update = Update(
            round=broadcast.round,
            client=tuned.client,
            delta=tuned.delta,
            extra=tuned.extra,
            weight=weight(self.federation, tuned),
            metrics={
                "loss": tuned.loss,
                "examples": tuned.examples,
                "tokens": tuned.tokens,
                "trained_tokens": tuned.trained_tokens,
                "steps": tuned.steps,
            },
        )
        seed = seed_for(broadcast.seed, "transform", tuned.client)
        return self.transform.on_client(update, broadcast.transforms, seed)


@dataclass(slots=True, kw_only=True)
class _Meter:
    """Adds up the tunings of one round."""

    round: int
    rounds: int
    clients: int
    clients_done: int = 0
    tokens_before: int = 0
    tokens: int = 0
    began: float = field(default_factory=perf_counter)

    def read(self, tuning: tune.Progress) -> Progress:
        self.tokens = self.tokens_before + tuning.tokens
        return Progress(
            round=self.round,
            rounds=self.rounds,
            clients_done=self.clients_done,
            clients=self.clients,
            tokens=self.tokens,
            loss=tuning.loss,
            seconds=perf_counter() - self.began,
        )

    def pass_on(self, clients: int) -> None:
        self.clients_done += clients
        self.tokens_before = self.tokens


def weight(federation: FederationTable, tuned: Tuned) -> float:
    """What the client counts for in the mean."""
    match federation.weights:
        case "examples":
            return float(tuned.examples)
        case "tokens":
            return float(tuned.trained_tokens)
        case "equal":
            return 1.0
