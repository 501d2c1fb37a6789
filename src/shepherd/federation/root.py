"""The server's own examples: what they teach in a round, by the visit and the trainer of a client."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from shepherd.core import Broadcast, Failure, Payload, chain
from shepherd.data.tokens import Tokens
from shepherd.errors import FederationError
from shepherd.federation.clients import LocalClients
from shepherd.federation.simulation import Simulation
from shepherd.io.progress import stage
from shepherd.machine.executors import Executor
from shepherd.training import tune

ROOT = "(server)"
"""What the server's examples are called where clients have names."""


@dataclass(slots=True, kw_only=True, repr=False)
class Root:
    """Tunes the server's own examples from a broadcast, as a client without memory and without transforms.

    A visit begins in the data where the one of the round before stopped; where that is depends on the number
    of the round alone, so nothing of it is saved (law 3).
    """

    local: LocalClients
    executor: Executor
    positions: list[int] = field(default_factory=lambda: [0])
    """Where the visit of each round begins, as far as it is known."""

    def __call__(self, broadcast: Broadcast) -> Payload:
        """The change that the examples give in this round."""
        while len(self.positions) <= broadcast.round:
            self.positions.append(self.local.batches(ROOT, self.positions[-1]).position)
        batches = self.local.batches(ROOT, self.positions[broadcast.round])
        visit = self.local.with_memory(broadcast, self.local.visit(broadcast, ROOT, batches), Payload())
        with stage("tuning the server's examples"):
            ((tuned,),) = self.executor.tuned([self.local.job(broadcast, [visit])], _unseen)
        if isinstance(tuned, Failure):
            raise FederationError(f"the server's own examples were not tuned: {tuned.reason}")
        update, _ = self.local.update(replace(broadcast, transforms=()), tuned, Payload())
        return update.delta


def root_of(examples: Tokens | None, simulation: Simulation) -> Root | None:
    """The trainer of the server's own examples, as a run's clients are tuned; None without examples."""
    if examples is None:
        return None
    local = replace(simulation.local, datasets={ROOT: examples}, transform=chain(), ranks={})
    return Root(local=local, executor=simulation.executor)


def _unseen(number: int, progress: tune.Progress) -> None:
    """Show nothing: it is as long as one client's visit."""
