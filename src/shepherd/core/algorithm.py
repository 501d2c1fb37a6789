"""Algorithm: what a client does differently from FedAvg, and what the server keeps for it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from shepherd.core.adapter import Adapter
from shepherd.core.messages import Broadcast, ClientInfo, Context, ServerState, Update
from shepherd.core.payload import Layout, Payload, shapes_of
from shepherd.core.randomness import Draws
from shepherd.core.ranks import of_rank


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """The optimiser step of a visit whose gradient is corrected."""

    index: int
    """Optimiser steps before this one."""
    rates: Any
    """The learning rate of this step for each client, (K, 1, 1), on the tensors' device."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalResult:
    """The result of one visit: the adapter before and after local training."""

    start: Adapter
    """The whole adapter before the first step, personal factors included."""
    local: Adapter
    """The tensors that were trained, after the last step."""
    steps: int
    rate_sum: float
    """Sum of the learning rates of all steps; steps times the rate if it is constant."""
    learning_rate: float | None = None
    """Learning rate of the round, before the schedule within a visit; None if it is each step's."""

    @property
    def effective_steps(self) -> float:
        """Steps, each counted as the share of the round's learning rate that it was made with."""
        return self.rate_sum / self.learning_rate if self.learning_rate else float(self.steps)

    @property
    def delta(self) -> Adapter:
        """The change of the trained tensors: local - start."""
        return Adapter({name: tensor - self.start[name] for name, tensor in self.local.items()})


@dataclass(frozen=True, slots=True, kw_only=True)
class Expected:
    """The layout that a client's update has to have once it is decoded."""

    delta: Layout
    extra: Layout = field(default_factory=dict)


class Observer(Protocol):
    """Sees the updates of one round as they are aggregated, and reports figures about them."""

    def add(self, update: Update) -> None:
        """Include one update, with the weight that it has in the mean."""

    def figures(self) -> Mapping[str, float]:
        """The figures of the round, by their column in rounds.jsonl."""


Memory = Mapping[str, Payload]
Correct = Callable[[str, Any, Any, Broadcast, Mapping[str, Any], Step], Any]


def as_broadcast(broadcast: Broadcast, memory: Payload, client: ClientInfo) -> Adapter:
    """Start from the broadcast adapter."""
    return broadcast.adapter


def every_tensor(name: str, round: int) -> bool:
    """Choose all tensors, in every round."""
    return True


def no_core(name: str, round: int) -> bool:
    """Choose no tensor."""
    return False


def remember_nothing(memory: Payload, broadcast: Broadcast, result: LocalResult) -> tuple[Payload, Payload]:
    """Keep nothing between visits (`memory` is empty before the first) and send nothing extra."""
    return memory, Payload()


def no_server_memory(adapter: Adapter) -> Memory:
    """Keep no server memory but the adapter."""
    return {}


def as_accepted(update: Update, counts: Mapping[str, float]) -> Update:
    """Aggregate the update as it is."""
    return update


def as_aggregated(update: Update) -> Update:
    """Move along the aggregate as it is."""
    return update


def nothing_extra(state: ServerState) -> Payload:
    """Send the adapter alone."""
    return Payload()


def keep_server_memory(state: ServerState, update: Update, context: Context) -> Memory:
    """Leave the server's memory unchanged."""
    return state.memory


@dataclass(frozen=True, slots=True, kw_only=True)
class Algorithm:
    """The client half of a federated method, and what the server keeps for it; each default is FedAvg's.

    Make variants with `dataclasses.replace(algorithm, ...)` or `Algorithm(correct=...)`.
    """

    start: Callable[[Broadcast, Payload, ClientInfo], Adapter] = as_broadcast
    """The adapter that a visit starts from: personal factors from the client's memory, a smaller rank."""
    trainable: Callable[[str, int], bool] = every_tensor
    """Whether a tensor is trained in a round."""
    shared: Callable[[str, int], bool] = every_tensor
    """Whether a trained tensor leaves the client in a round."""
    core: Callable[[str, int], bool] = no_core
    """Whether a B that is trained and shared is written as Q R in a round, with an orthonormal Q that stays:
    only R is stepped on, and only its change is sent, under B's name. See `shepherd.core.cores`."""
    correct: Correct | None = None
    """The gradient to step along: `(name, grad, param, broadcast, memory, step) -> grad`.

    It runs inside the trainer on stacked tensors with a leading client axis, (K, ...), and must be plain
    arithmetic: `broadcast.adapter[name]` has no client axis and broadcasts over it, `memory[name]` has one.
    """
    remember: Callable[[Payload, Broadcast, LocalResult], tuple[Payload, Payload]] = remember_nothing
    """What the client keeps for its next visit, and what it sends in addition to its change."""
    expected: Callable[[Broadcast, ClientInfo], Expected] | None = None
    """The layout that a client's update must have; the default is the shared tensors' and no extra."""
    observe: Callable[[Broadcast, Context, Draws], Observer] | None = None
    """What to report about a round's updates, such as the gap of averaged factors (law 10); None: nothing."""
    accept: Callable[[Update, Mapping[str, float]], Update] = as_accepted
    """What of one checked update is aggregated: `(update, counts) -> update`, or raise `UpdateRefused`.

    `counts` has the largest value of each metric that counts something, such as "steps", in the visit that
    was asked; it is empty if that is not known. What a client claims in `extra` is checked against it here.
    """
    settle: Callable[[Update], Update] = as_aggregated
    """The change that the aggregate stands for, before the server optimiser makes its step."""
    server_init: Callable[[Adapter], Memory] = no_server_memory
    """The server's memory before the first round."""
    server_extra: Callable[[ServerState], Payload] = nothing_extra
    """What the server sends in addition to the adapter."""
    server_remember: Callable[[ServerState, Update, Context], Memory] = keep_server_memory
    """The server's memory after a round, computed from the aggregated update."""
    needs_sgd: bool = False
    """Whether it is right only for local steps of plain SGD, without momentum and without scaling."""
    needs_mean: bool = False
    """Whether its `extra` must be averaged as the change is."""
    needs_exact: bool = False
    """Whether the server must get each update as the client made it: not clipped, rounded or turned."""
    needs_equal_weights: bool = False
    """Whether each client must count the same and be as likely as any other to be asked."""

    personal: bool = False
    """Whether a client's own model is what `start` makes of its memory, and not the server's adapter."""
    server_is_model: bool = True
    """Whether the server's adapter is a model without what the clients keep."""
    adds_ranks: int = 0
    """How many ranks `start` has beside the broadcast's; a parameter that stacks experts' matrices has no
    place for any."""

    memory_is_basis_free: bool = False
    """Whether what a client or the server remembers is right for any factors of the same products. A control
    variate or a personal B is not: it belongs to the ranks of the broadcast one by one."""

    @property
    def keeps_memory(self) -> bool:
        """Whether a client keeps something from visit to visit."""
        return self.remember is not remember_nothing

    @property
    def remembers_factors(self) -> bool:
        """Whether a memory belongs to the ranks of the broadcast one by one, or may do so."""
        keeps = self.keeps_memory or self.server_init is not no_server_memory
        return keeps and not self.memory_is_basis_free

    def leaves(self, name: str, round: int) -> bool:
        """Whether a tensor is part of an update in a round: trained and shared."""
        return self.trainable(name, round) and self.shared(name, round)

    def expects(self, broadcast: Broadcast, client: ClientInfo) -> Expected:
        """The layout that a client's update must have in this round."""
        if self.expected is not None:
            return self.expected(broadcast, client)
        shapes = shapes_of(broadcast.adapter)
        names = [name for name in shapes if self.leaves(name, broadcast.round)]
        cored = {
            name: (min(shapes[name]), shapes[name][1]) for name in names if self.core(name, broadcast.round)
        }
        whole = {name: of_rank(name, shapes[name], client.rank) for name in names}
        return Expected(delta={**whole, **cored})
