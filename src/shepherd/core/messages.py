"""The values that travel between server and clients, and the server's state between rounds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from shepherd.core.adapter import Adapter
from shepherd.core.payload import Layout, Payload


@dataclass(frozen=True, slots=True, kw_only=True)
class Broadcast:
    """What the server sends; the same for the whole cohort."""

    round: int
    adapter: Adapter
    seed: int
    """Each client's order of draws comes from it; nothing that protects a person may."""
    transforms: Any = ()
    """The public part of each transform's state."""
    extra: Payload = field(default_factory=Payload)
    """What the algorithm's server half adds, such as a control variate."""

    @property
    def nbytes(self) -> int:
        """Bytes that one client receives."""
        return self.adapter.nbytes + self.extra.nbytes


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalReport:
    """What a client measured in one visit; `Update.metrics` holds those of them that it lets out, by name."""

    loss: float
    """Mean over the visit's trained tokens, in nats, each scored before the step it was part of."""
    examples: int
    """Examples taken, each as often as it was."""
    tokens: int
    """Tokens of these examples."""
    trained_tokens: int
    """Those of them that were a target of the loss."""
    steps: int
    """Optimiser steps."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Update:
    """A weighted mean of the changes of one client or of several; closed under merging."""

    round: int
    delta: Payload
    """Local - broadcast, of the tensors that are shared; coded, where a transform codes it."""
    weight: float
    """What it counts for in the mean, above 0."""
    clients: tuple[str, ...]
    """Whose changes it is made of: several in a worker's mean or a secure sum, none in an empty round."""
    extra: Payload = field(default_factory=Payload)
    """What the algorithm sends beside the change."""
    metrics: Mapping[str, float] = field(default_factory=dict)
    """What the client reports of its visit, by name: of a `LocalReport`, what its owner lets out."""

    @property
    def client(self) -> str:
        """The one client that it is of; the names joined by "+" where there are several."""
        return "+".join(self.clients)

    @property
    def nbytes(self) -> int:
        """Bytes that the client sends."""
        return self.delta.nbytes + self.extra.nbytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """A client that gave no usable update, and why (one sentence, no data of the client)."""

    client: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientInfo:
    """What the server may know of a client: its name and how many examples it holds."""

    name: str
    examples: int
    min_cohort: int = 1
    """Usable updates that a mean must be made of, or this client's part in it is not let out."""
    rank: int | None = None
    """Of its adapter, where it is smaller than the broadcast's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerState:
    """All that the server remembers between rounds; saving it is the checkpoint."""

    round: int
    adapter: Adapter
    memory: Mapping[str, Payload] = field(default_factory=dict)
    """The server half of the algorithm's, such as SCAFFOLD's control variate."""
    optimiser: Mapping[str, Payload] = field(default_factory=dict)
    """The server optimiser's, such as a momentum."""
    transforms: Any = ()
    """Of each transform, also what clients must not know."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """What is known of a run before its first round, for whatever has to know its size."""

    clients: int = 1
    """Of the whole federation."""
    share: float = 1.0
    """Of the clients that a round asks, in (0, 1]."""
    rounds: int = 1
    """In all."""
    layout: Layout = field(default_factory=dict)
    """The adapter's tensors."""
    weights: str = "examples"
    """What a client's update counts for: `federation.weights`."""
    rank: int | None = None
    """Of the factors, where some tensors stack experts' matrices."""


class Federation(Protocol):
    """Clients behind one method. `run` is lazy: updates come one by one, as they are ready."""

    def clients(self) -> Sequence[ClientInfo]:
        """The clients that can be asked now, in a fixed order."""

    def run(self, broadcast: Broadcast, cohort: Sequence[str]) -> Iterator[Update | Failure]:
        """Ask each client of the cohort; yield what each answers."""
