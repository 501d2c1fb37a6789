"""Clients whose examples are on this machine: what each trains on in a visit, and the update that it sends.

Pure functions over values: a client's position in its data and its memory are arguments and results, so that
a simulation and a site's trainer keep them in their own way.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from shepherd.core import (
    Adapter,
    Algorithm,
    Broadcast,
    ClientInfo,
    Draws,
    FromSystem,
    LocalReport,
    Payload,
    Seeded,
    Transform,
    Update,
    corner,
    of_rank,
    seed_for,
)
from shepherd.core.payload import under
from shepherd.data import cursor, poisson_batches
from shepherd.data.tokens import Tokens
from shepherd.errors import DataError
from shepherd.privacy import example_level
from shepherd.privacy.example_level import ExampleAccount
from shepherd.settings import ExamplesTable, FederationTable, TuningTable
from shepherd.training import stack, tune
from shepherd.training.example_privacy import ExamplePrivacy
from shepherd.training.local import DEFAULT_TRAINING, LocalTraining
from shepherd.training.tune import Job, TuningResult, Visit

OF_TRANSFORM = "transform "
"""Prefix, in what a client remembers, of what the transform keeps; the rest is the algorithm's."""


def of_algorithm(memory: Payload) -> Payload:
    """The part of a client's memory that its algorithm reads.

    >>> sorted(of_algorithm(Payload({"control": [1.0], "transform 0 w": [2.0]})))
    ['control']
    """
    return Payload({name: tensor for name, tensor in memory.items() if not name.startswith(OF_TRANSFORM)})


class Batches(NamedTuple):
    """The batches of one visit, as indices into the client's data, and the cursor's position after them."""

    indices: Sequence[NDArray[np.int64]]
    position: int


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class LocalClients:
    """The client half of a round, for datasets on this machine."""

    datasets: Mapping[str, Tokens]
    algorithm: Algorithm
    transform: Transform
    tuning: TuningTable
    federation: FederationTable
    micro_batch_tokens: int
    """Tokens in one forward pass; see `training.tune.Job`."""
    order_seed: int
    """Decides the order of each client's examples."""
    training: LocalTraining = DEFAULT_TRAINING
    tunings: Mapping[str, TuningTable] = field(default_factory=dict)
    """Client -> how it is tuned, for those that differ from `tuning`; the clients of a stack must agree."""
    min_batch: int = 1
    """Fewest examples of an optimiser step; see `data.cursor.visit`."""
    min_examples: int = 1
    """Fewest different examples of a visit; see `data.cursor.visit`."""
    cap_nats: float = math.inf
    """Largest loss of one token in the reported loss, in nats; see `training.tune.Job`."""
    ranks: Mapping[str, int] = field(default_factory=dict)
    """Client -> how many ranks of the adapter it trains, the first ones; all, if it is not there."""
    truncates: bool = False
    """Whether a client in `ranks` starts from its own ranks alone, without the others."""
    draws: Draws | None = None
    """Randomness of the transforms' client half; by default the broadcast's seed decides it (law 2)."""
    privacy: ExamplesTable | None = None
    """How single examples are protected; see `training.example_privacy`."""
    account: ExampleAccount | None = None
    """What a client may spend of their privacy; None if somebody else decides, as the owner of a site."""
    private_draws: Draws = field(default_factory=FromSystem)
    """Randomness of the batches and the noise under `privacy`, which nobody may be able to repeat."""
    reference: Adapter | None = None
    """The adapter that an objective compares the current one with; None is the base alone."""

    def infos(self) -> Sequence[ClientInfo]:
        """Information on every client, in order of their names."""
        return [self.info(name) for name in sorted(self.datasets)]

    def info(self, client: str) -> ClientInfo:
        """A client's name and size."""
        return ClientInfo(name=client, examples=self.size(client), rank=self.ranks.get(client))

    def size(self, client: str) -> int:
        """Number of examples that a client trains on; of groups, if the objective draws groups."""
        return len(self.datasets[client]) // self.training.objective.group_size

    def batches(self, client: str, position: int) -> Batches:
        """The batches of a client's next visit, from its cursor's position.

        Under `privacy` they are drawn by chance, and the position counts the examples of an average draw.

        Raises:
            DataError: the client has no example, or has spent what `account` allows it.
        """
        size, group = self.size(client), self.training.objective.group_size
        if not size:
            raise DataError(f"client {client} has no example; give it some or remove it from the federation")
        if self.privacy is not None:
            return self._drawn(client, position)
        tuning = self.tuning_of(client)
        batches, end = cursor.visit(
            size,
            position,
            epochs=tuning.epochs,
            max_steps=tuning.max_steps,
            batch_size=tuning.batch_size,
            seed=seed_for(self.order_seed, "order", client),
            min_batch=self.min_batch,
            min_examples=self.min_examples,
        )
        members = np.arange(group)
        return Batches([(group * batch[:, None] + members).ravel() for batch in batches], end)

    def visit_examples(self, client: str, position: int) -> int:
        """Number of examples of a client's next visit, repeated ones included; on average, under `privacy`.

        Raises:
            DataError: the client has no example.
        """
        if self.privacy is not None and self.size(client):
            return self.visit_steps(client) * self.expected_batch(client)
        return sum(map(len, self.batches(client, position).indices))

    def _drawn(self, client: str, position: int) -> Batches:
        size, more = self.size(client), self.visit_steps(client)
        if self.account is not None:
            made = self.steps_made(client, position) + self.account.again * more
            refusal = self.account.refusal(client, size, made, more)
            if refusal is not None:
                raise DataError(refusal)
        chance = example_level.chance(size, self.tuning_of(client).batch_size)
        rng = self.private_draws.generator("batches", client, position)
        drawn = poisson_batches.visit(size, more, chance, rng)
        return Batches(drawn, position + more * self.expected_batch(client))

    def visit_steps(self, client: str) -> int:
        """Steps of a visit under `privacy`."""
        return example_level.steps(self.tuning_of(client), self.size(client))

    def expected_batch(self, client: str) -> int:
        """Expected number of examples of a step under `privacy`."""
        return example_level.expected_batch(self.size(client), self.tuning_of(client).batch_size)

    def steps_made(self, client: str, position: int) -> int:
        """Steps that a client has made under `privacy` when its cursor is at this position."""
        return position // self.expected_batch(client)

    def coverage(self, client: str, position: int) -> float:
        """Share of a client's examples that were taken at least once (law 8); on average, under `privacy`."""
        size = self.size(client)
        if self.privacy is None or not size:
            return cursor.coverage(size, position)
        chance = example_level.chance(size, self.tuning_of(client).batch_size)
        return poisson_batches.coverage(self.steps_made(client, position), chance)

    def visit(self, broadcast: Broadcast, client: str, batches: Batches) -> Visit:
        """A client's work in a round, without its memory.

        Raises:
            DataError: a batch holds no trained token.
        """
        data, seed = self.datasets[client], seed_for(broadcast.seed, client)
        visit = Visit(client=client, data=data, batches=batches.indices, seed=seed)
        if self.privacy is not None:
            return replace(visit, expected_batch=self.expected_batch(client))
        tune.require_trained(visit)
        return visit

    def with_memory(self, broadcast: Broadcast, visit: Visit, memory: Payload) -> Visit:
        """A visit with the client's memory and the adapter that it starts from."""
        memory = of_algorithm(memory)
        start, rank = (
            self.algorithm.start(broadcast, memory, self.info(visit.client)),
            self.ranks.get(visit.client),
        )
        if self.truncates and rank is not None:
            start = Adapter({n: corner(t, of_rank(n, t.shape, rank)) for n, t in start.items()})
        return replace(
            visit,
            memory=memory,
            start=None if start is broadcast.adapter else start,
            rank=rank,
        )

    def job(self, broadcast: Broadcast, visits: Sequence[Visit]) -> Job:
        """A job that tunes these visits in one pass."""
        tuning = self.tuning_of(visits[0].client) if visits else self.tuning
        return Job(
            broadcast=broadcast,
            algorithm=self.algorithm,
            visits=visits,
            tuning=tuning,
            learning_rate=stack.round_rate(tuning, broadcast.round, self.federation.rounds),
            micro_batch_tokens=self.micro_batch_tokens,
            training=self.training,
            cap_nats=self.cap_nats,
            privacy=None
            if self.privacy is None
            else ExamplePrivacy(norm=self.privacy.norm, noise=self.privacy.noise, draws=self.private_draws),
            reference=self.reference,
        )

    def learning_rate(self, round: int) -> float:
        """Learning rate of a round, counted from 0, before the schedule within a visit is applied."""
        return stack.round_rate(self.tuning, round, self.federation.rounds)

    def tuning_of(self, client: str) -> TuningTable:
        """How a client is tuned."""
        return self.tunings.get(client, self.tuning)

    def update(self, broadcast: Broadcast, tuned: TuningResult, memory: Payload) -> tuple[Update, Payload]:
        """The update that a client sends after its visit, and what it remembers until its next one.

        Under `privacy` the update has no metrics, which no noise hides.

        Args:
            memory: what the client remembered before the visit.
        """
        update = Update(
            round=broadcast.round,
            clients=(tuned.client,),
            delta=tuned.delta,
            extra=tuned.extra,
            weight=weight(self.federation, tuned.report, self.size(tuned.client)),
            metrics=asdict(tuned.report) if self.privacy is None else {},
        )
        draws = self.draws or Seeded(seed_for(broadcast.seed, "transform", tuned.client))
        own = Payload(under(OF_TRANSFORM, memory))
        sent, own = self.transform.at_client(update, broadcast.transforms, draws, broadcast, own)
        kept = {OF_TRANSFORM + name: tensor for name, tensor in own.items()}
        return sent, Payload({**tuned.memory, **kept})


def weight(federation: FederationTable, report: LocalReport, size: int) -> float:
    """Weight in the mean of a client that holds `size` examples to train on."""
    match federation.weights:
        case "size":
            return float(size)
        case "examples":
            return float(report.examples)
        case "tokens":
            return float(report.trained_tokens)
        case "equal":
            return 1.0
