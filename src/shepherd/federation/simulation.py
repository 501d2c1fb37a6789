"""Simulation: all clients on this machine, K in one pass, over one base in memory or one copy per worker."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from time import perf_counter

from shepherd.core import Adapter, Broadcast, ClientInfo, Failure, Payload, Update
from shepherd.errors import DataError, UpdateRefused
from shepherd.federation.client_store import ClientStore, InMemory, StoredMemory
from shepherd.federation.clients import OF_TRANSFORM, LocalClients, of_algorithm
from shepherd.io.progress import Progress, stage
from shepherd.machine.executors import Executor
from shepherd.training import tune
from shepherd.training.tune import Job, TuningResult, Visit


@dataclass(slots=True)
class Draft:
    """Changes of the round under way, kept apart until the round is finished."""

    round: int = -1
    complete: bool = False
    """Whether every client of the cohort has answered."""
    positions: dict[str, int] = field(default_factory=dict)
    memories: dict[str, StoredMemory] = field(default_factory=dict)

    def begin(self, round: int) -> None:
        """Discard all changes and start on a round."""
        self.round, self.complete = round, False
        self.positions, self.memories = {}, {}


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Simulation:
    """A Federation whose clients are datasets on this machine.

    `positions` (examples that each client has used, over all visits) and `memories` (which stored memory is
    each client's current one) are those after the last finished round: `commit`, or a request for a later
    round, applies the changes of a round. A round that is interrupted, fails its quorum or is repeated leaves
    no trace in them (law 3). A checkpoint saves what `reached` returns.
    """

    local: LocalClients
    executor: Executor
    stack_size: int
    """Clients tuned in one pass."""
    store: ClientStore = field(default_factory=InMemory)
    positions: dict[str, int] = field(default_factory=dict)
    memories: dict[str, StoredMemory] = field(default_factory=dict)
    watch: Callable[[Progress], None] = lambda progress: None
    """Called with the progress of a round; ends the round by raising."""
    draft: Draft = field(default_factory=Draft)
    quiet: bool = False
    """Whether nothing of a round is shown while it goes on, as where noise is to hide who takes part."""

    def clients(self) -> Sequence[ClientInfo]:
        """Information on every client, in order of their names."""
        return self.local.infos()

    def run(self, broadcast: Broadcast, cohort: Sequence[str]) -> Iterator[Update | Failure]:
        """Tune the cohort, `stack_size` clients in one pass; updates come in the cohort's order."""
        return self.run_groups(broadcast, self._stacks(cohort))

    def run_more(self, broadcast: Broadcast, cohort: Sequence[str]) -> Iterator[Update | Failure]:
        """Like `run`, for further clients of the round that was begun."""
        return self._tuned(broadcast, self._stacks(cohort))

    def run_groups(self, broadcast: Broadcast, cohort: Sequence[Sequence[str]]) -> Iterator[Update | Failure]:
        """Tune a cohort in these groups, each in one pass; updates come in this order."""
        self.begin(broadcast.round)
        yield from self._tuned(broadcast, cohort)

    def _stacks(self, cohort: Sequence[str]) -> list[Sequence[str]]:
        starts = range(0, len(cohort), self.stack_size)
        return [cohort[start : start + self.stack_size] for start in starts]

    def _tuned(self, broadcast: Broadcast, cohort: Sequence[Sequence[str]]) -> Iterator[Update | Failure]:
        self.draft.complete = False
        groups = [self._group(broadcast, clients) for clients in cohort]
        meter = _Meter(
            round=broadcast.round + 1,
            rounds=self.local.federation.rounds,
            sizes=[len(group.clients) for group in groups],
            round_tokens=sum(visit.tokens for group in groups for visit in group.visits),
        )
        with stage("tuning", 0 if self.quiet else meter.round_tokens) as now:

            def watch(number: int, latest: tune.Progress) -> None:
                meter.latest[number] = latest
                progress = meter.read()
                if not self.quiet:
                    now.at(progress)
                self.watch(progress)

            if not self.quiet:
                now.at(meter.read())
            # lazily: what a whole cohort remembers need not fit in memory
            done = self.executor.tuned((self._job(broadcast, group) for group in groups), watch)
            for group, tuned in zip(groups, done, strict=True):
                yield from self._answers(broadcast, group, tuned)
                meter.groups_done += 1
        self.draft.complete = True

    def begin(self, round: int) -> None:
        """Discard what a round has changed so far, once the round before it counts as finished."""
        if self.draft.round < round:  # a later round is asked for only once this one is finished
            self.commit()
        self.draft.begin(round)

    def visit_examples(self, client: str) -> int:
        """Number of examples of a client's visit in the round that was begun.

        Raises:
            DataError: the client has no example.
        """
        return self.local.visit_examples(client, self.positions.get(client, 0))

    def commit(self) -> None:
        """Apply the changes of the last round, if its whole cohort has answered."""
        if self.draft.complete:
            self.positions.update(self.draft.positions)
            self.memories.update(self.draft.memories)
        self.draft.begin(self.draft.round)

    def reached(self) -> tuple[dict[str, int], dict[str, StoredMemory]]:
        """Positions and memories as they will be once the round under way is finished."""
        draft = self.draft if self.draft.complete else Draft()
        return {**self.positions, **draft.positions}, {**self.memories, **draft.memories}

    def own_adapter(self, broadcast: Broadcast, client: str) -> Adapter:
        """The adapter that a client's next visit would start from: its own model, if it keeps a part."""
        _, memories = self.reached()
        kept = memories.get(client)
        memory = of_algorithm(self.store.get(client, kept)) if kept else Payload()
        return self.local.algorithm.start(broadcast, memory, self.local.info(client))

    def coverage(self) -> dict[str, float]:
        """Share of each client's examples that it has trained on (law 8), the round under way included."""
        positions, _ = self.reached()
        return {
            client.name: self.local.coverage(client.name, positions.get(client.name, 0))
            for client in self.clients()
        }

    def steps_made(self) -> dict[str, int]:
        """The steps that each client has made on its examples under noise; see `reached`."""
        positions, _ = self.reached()
        return {client: self.local.steps_made(client, at) for client, at in positions.items()}

    def _group(self, broadcast: Broadcast, clients: Sequence[str]) -> _Group:
        visits, failures, positions = [], {}, {}
        for client in clients:
            try:
                batches = self.local.batches(client, self.positions.get(client, 0))
                visits.append(self.local.visit(broadcast, client, batches))
                positions[client] = batches.position
            except DataError as error:
                failures[client] = Failure(client=client, reason=str(error))
        return _Group(clients=clients, visits=visits, failures=failures, positions=positions)

    def _job(self, broadcast: Broadcast, group: _Group) -> Job:
        visits = [
            self.local.with_memory(broadcast, visit, self._memory(visit.client)) for visit in group.visits
        ]
        return self.local.job(broadcast, visits)

    def _memory(self, client: str) -> Payload:
        kept = self.memories.get(client)
        return self.store.get(client, kept) if kept else Payload()

    def _keep(self, broadcast: Broadcast, client: str, memory: Payload) -> None:
        """Store what a client remembers, in place of what it did."""
        if memory or client in self.memories:
            self.draft.memories[client] = self.store.put(client, broadcast.round + 1, memory)

    def _answers(
        self, broadcast: Broadcast, group: _Group, tuned: Sequence[TuningResult | Failure]
    ) -> Iterator[Update | Failure]:
        results = {**group.failures, **{result.client: result for result in tuned}}
        for client in group.clients:
            result = results.pop(client)
            if isinstance(result, Failure):
                yield result
                continue
            self.draft.positions[client] = group.positions[client]
            before = self._memory(client) if self.local.transform.remember is not None else Payload()
            try:
                update, memory = self.local.update(broadcast, result, before)
            except UpdateRefused as refusal:  # a transform does not let it leave
                kept = {name: t for name, t in before.items() if name.startswith(OF_TRANSFORM)}
                self._keep(broadcast, client, Payload({**kept, **result.memory}))
                yield Failure(client=client, reason=str(refusal))
                continue
            self._keep(broadcast, client, memory)
            yield update
            del update  # else it would live on while the next one is waited for (law 5)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Group:
    """Clients to tune in one pass, the failures of those that cannot be, and the others' new positions."""

    clients: Sequence[str]
    visits: Sequence[Visit]
    failures: Mapping[str, Failure]
    positions: Mapping[str, int]


@dataclass(slots=True, kw_only=True)
class _Meter:
    """Adds up the progress of the jobs of one round."""

    round: int
    rounds: int
    sizes: Sequence[int]
    """Clients of each group."""
    round_tokens: int
    groups_done: int = 0
    latest: dict[int, tune.Progress] = field(default_factory=dict)
    began: float = field(default_factory=perf_counter)

    def read(self) -> Progress:
        """Progress of the round, from the latest report of each group."""
        sizes, done = self.sizes, self.groups_done
        going = {number: progress for number, progress in self.latest.items() if number >= done}
        slowest = min(going.values(), key=lambda progress: progress.step, default=None)
        tokens = sum(each.tokens for each in self.latest.values())
        return Progress(
            round=self.round,
            rounds=self.rounds,
            clients_done=sum(sizes[:done]),
            clients=sum(sizes),
            tokens=tokens,
            loss=sum(each.loss * each.tokens for each in self.latest.values()) / max(1, tokens),
            seconds=perf_counter() - self.began,
            first=sum(sizes[:done]) + 1,
            last=sum(sizes[: max(going, default=done) + 1]),
            step=slowest.step if slowest else 0,
            steps=slowest.steps if slowest else 0,
            round_tokens=self.round_tokens,
        )
