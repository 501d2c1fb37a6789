"""One training of a drill: the rounds of a run file with one rule, under one attack."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from shepherd import plugins
from shepherd.consent import Consent
from shepherd.core import Adapter, Aggregation, Context, Method, ServerState, Update
from shepherd.data.dataset import Partition, TokenisedData
from shepherd.drill.attacks import Attack
from shepherd.drill.malicious import Malicious, corrupted
from shepherd.drill.rules import Rule
from shepherd.errors import FederationError, QuorumNotMet
from shepherd.federation.client_store import OnDisk, StoredMemory
from shepherd.federation.clients import LocalClients
from shepherd.federation.root import root_of
from shepherd.federation.simulation import Simulation
from shepherd.machine.executors import Executor
from shepherd.machine.plan import Plan
from shepherd.model.base import Base
from shepherd.rounds import context_of, rounds, start, weights
from shepherd.rounds.ranks import ranks_of
from shepherd.run import checkpoint, starting
from shepherd.run.checkpoint import Checkpoint
from shepherd.settings import RunSettings
from shepherd.training.local import local_training


@dataclass(frozen=True, slots=True, kw_only=True)
class Tally:
    """What was counted over the rounds of one training."""

    rounds: int = 0
    failures: int = 0
    """Answers that were refused."""
    kept: Mapping[str, int] = field(default_factory=lambda: {"good": 0, "bad": 0})
    """Updates that the aggregates were made of."""
    usable: Mapping[str, int] = field(default_factory=lambda: {"good": 0, "bad": 0})
    """Updates that the aggregation was given."""

    def plus(self, failures: int, usable: Iterable[str], kept: Iterable[str], bad: frozenset[str]) -> Tally:
        """With one more round."""
        return Tally(
            rounds=self.rounds + 1,
            failures=self.failures + failures,
            usable=_counted(self.usable, usable, bad),
            kept=_counted(self.kept, kept, bad),
        )


def _counted(before: Mapping[str, int], clients: Iterable[str], bad: frozenset[str]) -> dict[str, int]:
    names = list(clients)
    wrong = sum(name in bad for name in names)
    return {"good": before["good"] + len(names) - wrong, "bad": before["bad"] + wrong}


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Bench:
    """What all trainings of a drill share."""

    base: Base
    plan: Plan
    settings: RunSettings
    executor: Executor
    division: Partition
    bad: frozenset[str]
    consent: Consent


def trained(
    place: Path, bench: Bench, attack: Attack, each: Rule, prepared: TokenisedData
) -> tuple[Adapter, Tally, str | None]:
    """Train one attack with one rule, from its last finished round.

    Returns:
        The last adapter, what was counted, and why the rounds stopped, if they did.
    """
    settings, base = each.over(bench.settings), bench.base
    kept: list[str] = []
    method = plugins.method(settings, bench.consent.plugins)
    method = replace(method, aggregation=_recorded(method.aggregation, kept))
    selection = plugins.selection(settings, bench.consent.plugins)
    simulation = Simulation(
        local=LocalClients(
            datasets=prepared.clients,
            algorithm=method.algorithm,
            transform=corrupted(method.transform, bench.bad, attack, settings.seed),
            tuning=settings.tuning,
            federation=settings.federation,
            micro_batch_tokens=bench.plan.micro_batch_tokens,
            order_seed=settings.seed,
            training=local_training(settings.tuning, bench.consent.plugins),
            ranks=ranks_of(settings.adapter, method.aggregation, list(prepared.clients)),
            truncates=method.aggregation.truncates,
        ),
        executor=bench.executor,
        stack_size=bench.plan.stack_size,
        store=OnDisk(place / "clients", 1),
        quiet=True,
    )
    fresh = starting.first(settings, base, method).adapter
    context = context_of(settings, selection, fresh, len(prepared.clients))
    state, tally = _begun(place, simulation, method, fresh, context)
    allow = weights.allowed_by(settings)
    federation = Malicious(inner=simulation, bad=bench.bad, attack=attack, allow=allow)
    loop = rounds(
        method,
        federation,
        state,
        until=settings.federation.rounds,
        select=selection.cohort,
        quorum=settings.federation.quorum,
        seed=settings.seed,
        context=context,
        allow=allow,
        max_share=settings.federation.max_share,
        root=root_of(prepared.root, simulation),
        by_loss=selection.by_loss,
    )
    try:
        for state, report in loop:
            tally = tally.plus(len(report.failures), report.weights, kept, bench.bad)
            positions, memories = simulation.reached()
            notes = {"positions": positions, "memories": memories, "tally": asdict(tally)}
            checkpoint.save(place / "checkpoints", Checkpoint(state=state, notes=notes), keep=1)
            simulation.commit()
    except (QuorumNotMet, FederationError) as fault:
        return state.adapter, tally, str(fault)
    return state.adapter, tally, None


def _begun(
    place: Path, simulation: Simulation, method: Method, fresh: Adapter, context: Context
) -> tuple[ServerState, Tally]:
    """The state to go on from, and what was counted until then."""
    last = checkpoint.latest(place / "checkpoints")
    if last is None:
        return start(method, fresh, context), Tally()
    saved = checkpoint.load(last)
    simulation.positions.update(saved.notes["positions"])
    simulation.memories.update(
        {name: StoredMemory(*memory) for name, memory in saved.notes["memories"].items()}
    )
    return saved.state, Tally(**saved.notes["tally"])


def _recorded(aggregation: Aggregation, kept: list[str]) -> Aggregation:
    """The same aggregation, which leaves the clients that its last result is made of in `kept`."""

    def combine(state: ServerState, updates: Iterable[Update], context: Context) -> Update:
        result = aggregation.combine(state, updates, context)
        kept[:] = result.clients
        return result

    return replace(aggregation, combine=combine)
