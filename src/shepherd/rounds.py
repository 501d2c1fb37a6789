"""The rounds: select a cohort, ask it, check what comes back, take the mean, yield the state.

A generator and nothing else: evaluating, saving, logging and stopping early are the body of the caller's
`for`. To resume is to call it with a saved state; the bits come out the same.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from time import perf_counter
from typing import Any

import numpy as np

from shepherd.audit import Gap
from shepherd.core import (
    Adapter,
    Algorithm,
    Broadcast,
    Failure,
    Federation,
    ServerState,
    Transform,
    Update,
    require_same_layout,
    seed_for,
)
from shepherd.errors import AdapterError, FederationError, QuorumNotMet, UpdateRefused
from shepherd.select import Cohort, Select

MAX_WEIGHT = 1e12
"""More than the tokens of any visit: a larger weight is a mistake, or a bid to own the mean."""
MAX_METRIC = MAX_WEIGHT
"""Of a metric's size, and of a score's sum or count: products and sums of such numbers stay finite."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundReport:
    """What happened in one round."""

    round: int
    """How many rounds are finished with this one."""
    cohort: Cohort
    weights: Mapping[str, float]
    """What each usable update counted for, by client, in the order they came."""
    metrics: Mapping[str, Mapping[str, float]]
    """What each of these clients reported."""
    failures: Mapping[str, str]
    """Why each other client gave no usable update (or a second one)."""
    bytes_down: int
    """Of the tensors sent to the cohort, together."""
    bytes_up: int
    """Of the tensors that came back, refused ones too."""
    gap: float
    """||mean(BA) - mean(B) mean(A)|| / ||mean(BA)|| of the clients' local adapters (law 10)."""
    federation_seconds: float
    """Waiting for the clients: their training, in one process."""
    seconds: float
    """The whole round."""


def report_row(report: RoundReport) -> dict[str, Any]:
    """A round's report as it stands in rounds.jsonl: no tensor, no text of any example.

    A client whose owner keeps its metrics back counts nowhere but in the weights.
    """
    total = sum(report.weights.values())
    metrics = report.metrics
    losses = {client: each["loss"] for client, each in metrics.items() if "loss" in each}
    # a count below 0 could bring the sum next to it, and the mean to infinity
    trained = {client: max(0.0, metrics[client].get("trained_tokens", 0.0)) for client in losses}
    tokens = sum(trained.values())
    return {
        "round": report.round,
        "cohort": list(report.cohort),
        "weights": {client: weight / total for client, weight in report.weights.items()},
        "loss": sum(losses[client] * trained[client] for client in losses) / tokens if tokens else None,
        "losses": losses,
        "failures": dict(report.failures),
        "bytes_down": report.bytes_down,
        "bytes_up": report.bytes_up,
        "gap": report.gap,
        "examples": _sum(metrics, "examples"),
        "steps": _sum(metrics, "steps"),
        "tokens": {"seen": _sum(metrics, "tokens"), "trained": _sum(metrics, "trained_tokens")},
    }


def _sum(metrics: Mapping[str, Mapping[str, float]], name: str) -> int:
    return int(sum(each.get(name, 0) for each in metrics.values()))


def start(algorithm: Algorithm, transform: Transform, adapter: Adapter) -> ServerState:
    """The state before the first round."""
    return replace(algorithm.init(adapter), transforms=transform.init())


def rounds(
    algorithm: Algorithm,
    federation: Federation,
    transform: Transform,
    state: ServerState,
    *,
    until: int,
    select: Select,
    quorum: float,
    seed: int,
    rank: int | None = None,
) -> Iterator[tuple[ServerState, RoundReport]]:
    """Train up to round `until`; yield the state and the report after each round.

    One update is held at a time, unless the algorithm holds the cohort. An empty cohort passes with the
    adapter as it was.

    Args:
        until: rounds in all, those of `state` with them.
        select: `(clients, round, seed) -> names`, see `shepherd.select`.
        quorum: the share of the cohort, in (0, 1], that must give a usable update.
        seed: of the run; each round and purpose has one of its own from it.
        rank: of the adapter, where some of its tensors stack experts; see `audit.Gap`.

    Raises:
        QuorumNotMet: too few usable updates; the last state yielded stands.
        FederationError: no client at all, or a state that would not be finite.
    """
    while state.round < until:
        started = perf_counter()
        key = partial(seed_for, seed, state.round)
        cohort = select(federation.clients(), state.round, key("cohort"))
        broadcast = algorithm.broadcast(state, key("clients"))
        gap = Gap(state.adapter, seed, rank=rank)
        inbox = _Inbox(broadcast, cohort, blank(algorithm, transform, broadcast), gap)
        if cohort:
            updates = inbox.usable(federation.run(broadcast, cohort), quorum)
            update = algorithm.aggregate(state, updates)  # pulls the clients through one at a time
            update, states = transform.on_server(update, state.transforms, key("noise"))
            state = replace(algorithm.apply(state, update), transforms=states)
            _require_finite(state)
        state = replace(state, round=broadcast.round + 1)
        yield state, inbox.report(perf_counter() - started)


def blank(algorithm: Algorithm, transform: Transform, broadcast: Broadcast) -> Update:
    """What a client that changed nothing would send: the names and shapes every update must have."""
    still = {
        name: np.zeros_like(tensor)
        for name, tensor in broadcast.adapter.items()
        if algorithm.trainable(name, broadcast.round)
    }
    _, extra = algorithm.remember(Adapter(), broadcast, Adapter(still), 1)
    update = Update(round=broadcast.round, delta=Adapter(still), weight=1.0, extra=extra)
    return transform.on_client(update, broadcast.transforms, broadcast.seed)


def check(update: Update, expected: Update) -> None:
    """Law 6, for what can be seen from one update alone.

    Raises:
        UpdateRefused: another round, a weight outside (0, MAX_WEIGHT], several clients in one, a tensor
            missing, extra or misshapen, a number that is not finite, or a metric larger than MAX_METRIC.
    """
    if update.round != expected.round:
        raise UpdateRefused(
            f"it answers round {update.round + 1}, not {expected.round + 1}; take the broadcast anew"
        )
    if not 0 < update.weight <= MAX_WEIGHT:
        raise UpdateRefused(
            f"its weight {update.weight} is not in (0, {MAX_WEIGHT:g}]; mend how it is counted"
        )
    if update.count != 1:
        raise UpdateRefused(f"it says it is {update.count} clients; send one update a client")
    try:
        require_same_layout(expected.delta, update.delta, "its change")
        require_same_layout(expected.extra, update.extra, "its extra")
    except AdapterError as error:
        raise UpdateRefused(str(error)) from error
    for name in (*_not_finite(update.delta), *_not_finite(update.extra)):
        raise UpdateRefused(f"tensor {name} is not finite; lower the learning rate or clip the gradient")
    for name, value in update.metrics.items():
        if not abs(value) <= MAX_METRIC:
            raise UpdateRefused(
                f"metric {name} is {float(value):g} and its size may be {MAX_METRIC:g} at most; lower the"
                " learning rate or clip the gradient"
            )


def _not_finite(adapter: Adapter) -> Iterator[str]:
    return (name for name, tensor in adapter.items() if not np.isfinite(tensor).all())


def _require_finite(state: ServerState) -> None:
    for adapter in (state.adapter, *state.memory.values()):
        for name in _not_finite(adapter):
            raise FederationError(
                f"round {state.round + 1} would make tensor {name} not finite; clip the updates "
                "or lower the learning rate, and resume from the round before"
            )


@dataclass
class _Inbox:
    """What came in during one round. Usable updates pass through; their tensors are not kept."""

    broadcast: Broadcast
    cohort: Cohort
    expected: Update
    gap: Gap
    weights: dict[str, float] = field(default_factory=dict)
    metrics: dict[str, dict[str, float]] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)
    bytes_up: int = 0
    waited: float = 0.0

    def usable(self, answers: Iterator[Update | Failure], quorum: float) -> Iterator[Update]:
        # map and filter let go of an update before they ask for the next one; a `for` would not (law 5)
        timed: Iterator[Update | Failure] = iter(lambda: self._next(answers), None)
        yield from filter(None, map(self._sorted, timed))
        self._close(quorum)

    def report(self, seconds: float) -> RoundReport:
        return RoundReport(
            round=self.broadcast.round + 1,
            cohort=self.cohort,
            weights=self.weights,
            metrics=self.metrics,
            failures=self.failures,
            bytes_down=self.broadcast.nbytes * len(self.cohort),
            bytes_up=self.bytes_up,
            gap=self.gap.value(),
            federation_seconds=self.waited,
            seconds=seconds,
        )

    def _next(self, answers: Iterator[Update | Failure]) -> Update | Failure | None:
        began = perf_counter()
        try:
            return next(answers, None)
        finally:
            self.waited += perf_counter() - began

    def _sorted(self, answer: Update | Failure) -> Update | None:
        try:
            return self._accepted(answer)
        except UpdateRefused as refusal:
            self.failures.setdefault(answer.client, str(refusal))
            return None

    def _require_asked(self, client: str) -> None:
        if client not in self.cohort:
            raise UpdateRefused(f"client {client!r} was not asked this round; check who may answer")
        if client in self.weights or client in self.failures:
            raise UpdateRefused("it answered twice, and the first answer stands; send one answer")

    def _accepted(self, answer: Update | Failure) -> Update:
        if isinstance(answer, Update):
            self.bytes_up += answer.nbytes
        self._require_asked(answer.client)
        if isinstance(answer, Failure):
            raise UpdateRefused(answer.reason)
        check(answer, self.expected)
        self.weights[answer.client] = answer.weight
        self.metrics[answer.client] = dict(answer.metrics)
        self.gap.add(answer)
        return answer

    def _close(self, quorum: float) -> None:
        for client in self.cohort:
            if client not in self.weights:
                self.failures.setdefault(client, "it gave no answer")
        needed = max(1, math.ceil(quorum * len(self.cohort) - 1e-9))  # 0.55 of 100 is 55, not 56
        if len(self.weights) < needed:
            raise QuorumNotMet(
                f"round {self.broadcast.round + 1}: {len(self.weights)} of {len(self.cohort)} clients "
                f"gave a usable update and federation.quorum = {quorum:g} asks for {needed} "
                f"({_listed(self.failures)}); mend those clients or lower federation.quorum"
            )


def _listed(failures: Mapping[str, str], most: int = 5) -> str:
    shown = [f"{client}: {reason}" for client, reason in list(failures.items())[:most]]
    hidden = len(failures) - len(shown)
    return "; ".join(shown) + (f"; and {hidden} more" if hidden else "")
