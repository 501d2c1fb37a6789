"""The values that travel between server and clients, and the server's state between rounds."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from shepherd.core.adapter import Adapter
from shepherd.core.payload import Layout, Payload


@dataclass(frozen=True, slots=True, kw_only=True)
class Broadcast:
    """What the server sends; the same for the whole cohort."""

    round: int
    adapter: Adapter
    seed: int
    """Decides each client's random draws, but never noise that protects a person."""
    transforms: Any = ()
    """The public part of each transform's state."""
    extra: Payload = field(default_factory=Payload)
    """Tensors that the algorithm's server half adds, such as a control variate."""

    @property
    def nbytes(self) -> int:
        """Bytes that one client receives as tensors."""
        return self.adapter.nbytes + self.extra.nbytes


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalReport:
    """What a client measured in one visit; `Update.metrics` holds the ones that it releases, by name."""

    loss: float
    """Mean loss of the visit's trained tokens, in nats, each scored before the step that it is part of."""
    examples: int
    """Examples trained on; one that was used several times counts each time."""
    tokens: int
    """Tokens of these examples."""
    trained_tokens: int
    """Those tokens that were a target of the loss."""
    steps: int
    """Optimiser steps."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Update:
    """A weighted mean of the changes of one or several clients; two updates merge into another update."""

    round: int
    delta: Payload
    """Local - broadcast, for each tensor that is shared; encoded if a transform encodes it."""
    weight: float
    """Weight in the mean, above 0."""
    clients: tuple[str, ...]
    """The clients whose changes it is made of: several in a merged update, none in an empty round."""
    extra: Payload = field(default_factory=Payload)
    """Tensors that the algorithm sends in addition to the change."""
    metrics: Mapping[str, float] = field(default_factory=dict)
    """What the client reports of its visit, by name: the part of a `LocalReport` that its owner releases."""

    @property
    def client(self) -> str:
        """The name of its client; several names are joined by "+"."""
        return "+".join(self.clients)

    @property
    def nbytes(self) -> int:
        """Bytes that the client sends as tensors."""
        return self.delta.nbytes + self.extra.nbytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """A client that gave no usable update, and why (one sentence, no data of the client)."""

    client: str
    reason: str
    late: bool = False
    """Whether it was still at work when the round ended; see `shepherd.core.stragglers`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientInfo:
    """What the server may know of a client: its name and how many examples it holds."""

    name: str
    examples: int
    min_cohort: int = 1
    """Fewest usable updates in a mean that this client's update may be part of."""
    rank: int | None = None
    """How many ranks of the adapter it trains, the first ones; None for all. An update has these alone."""
    asked: int | None = None
    """Rounds that were finished when it was asked last; None before that, and where no selection needs it."""
    loss: float | None = None
    """Mean loss of its last visit in nats a token, as it reported it; None if that visit told none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerState:
    """All that the server remembers between rounds; saving it is the checkpoint."""

    round: int
    adapter: Adapter
    memory: Mapping[str, Payload] = field(default_factory=dict)
    """State of the algorithm's server half, such as SCAFFOLD's control variate."""
    optimiser: Mapping[str, Payload] = field(default_factory=dict)
    """State of the server optimiser, such as a momentum."""
    transforms: Any = ()
    """State of each transform, including the parts that clients must not know."""
    reports: Payload = field(default_factory=Payload)
    """What a selection by loss knows of each client it has asked; see `shepherd.rounds.hearing`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """What is known of a run before its first round, for parts that depend on its size."""

    clients: int = 1
    """Clients of the whole federation."""
    share: float = 1.0
    """Share of the clients that a round asks, in (0, 1]."""
    rounds: int = 1
    """Rounds of the whole run."""
    layout: Layout = field(default_factory=dict)
    """Names and shapes of the adapter's tensors."""
    weights: str = "examples"
    """How a client's update is weighted: `federation.weights`."""
    rank: int | None = None
    """Rank of every matrix's factors, for tensors that stack experts' matrices."""
    ranks: tuple[int, ...] = ()
    """The smaller ranks that clients train, ascending, whether or not they are asked in a round."""
    seed: int = 0
    """Decides what an aggregation draws and sends, such as new factors; never noise."""
    cohort: float | None = None
    """Clients that a round asks on average; None for `share` of them."""
    together: int = 1
    """Rounds in a row whose cohorts are drawn with one seed."""
    root: Payload | None = None
    """The change that the server's own examples give in the round under way, for an aggregation that needs
    it."""

    @property
    def expected_cohort(self) -> float:
        """Clients that a round asks on average: what a mechanism divides sums by, no matter who answers."""
        return max(1.0, self.share * self.clients) if self.cohort is None else self.cohort


Usable = Callable[[Update], bool]
"""Whether an update would count in its round, as far as it can be said of one by itself."""


def any_update(update: Update) -> bool:
    """Take every update for a usable one."""
    return True


class Federation(Protocol):
    """The clients of a run, in one process or over a network; `run` yields updates as they are ready.

    One that carries late updates has `at_work(round)`, client -> the earlier round whose update it has yet to
    send. These are not asked in a round, which may yield what they send.
    """

    def clients(self) -> Sequence[ClientInfo]:
        """The clients that can be asked now, in a fixed order."""

    def run(self, broadcast: Broadcast, cohort: Sequence[str]) -> Iterator[Update | Failure]:
        """Ask each client of the cohort; yield what each answers."""


@runtime_checkable
class EndsEarly(Protocol):
    """A `Federation` whose rounds may end before all have answered: by what counts, and not by what comes."""

    def run_early(
        self, broadcast: Broadcast, cohort: Sequence[str], usable: Usable
    ) -> Iterator[Update | Failure]:
        """Like `run`; `usable` says which updates count towards those that a round waits for."""
