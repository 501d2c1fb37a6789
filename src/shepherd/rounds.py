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
    ClientInfo,
    Failure,
    Federation,
    ServerState,
    Transform,
    Update,
    not_finite,
    require_same_layout,
    seed_for,
)
from shepherd.errors import AdapterError, FederationError, QuorumNotMet, UpdateRefused
from shepherd.select import Cohort, Select
from shepherd.weighing import ANYTHING, MAX_SHARE, MAX_WEIGHT, ROUNDING, Allow, Allowed, Shares, anything

MAX_METRIC = MAX_WEIGHT
"""Of a metric's size, and of a score's sum or count: products and sums of such numbers stay finite."""
MAX_NATS = 50.0
"""Of a token, in a loss over several clients: more than any guess over a vocabulary costs (ln 1e21)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundReport:
    """What happened in one round."""

    round: int
    """How many rounds are finished with this one."""
    cohort: Cohort
    weights: Mapping[str, float]
    """What each usable update counted for, by client, in the order they came."""
    capped: tuple[str, ...]
    """Clients that counted for less than their weight, so as not to outweigh the others."""
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
    losses = {
        client: min(max(0.0, each["loss"]), MAX_NATS) for client, each in metrics.items() if "loss" in each
    }
    # a count below 0 could bring the sum next to it, and the mean to infinity
    trained = {client: max(0.0, metrics[client].get("trained_tokens", 0.0)) for client in losses}
    tokens = sum(trained.values())
    nats = sum(losses[client] * trained[client] for client in losses)
    return {
        "round": report.round,
        "cohort": list(report.cohort),
        "weights": {client: weight / total for client, weight in report.weights.items()},
        "capped": list(report.capped),
        "loss": nats / tokens if tokens else None,
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
    allow: Allow = anything,
    max_share: float = MAX_SHARE,
) -> Iterator[tuple[ServerState, RoundReport]]:
    """Train up to round `until`; yield the state and the report after each round.

    One update is held at a time, and up to 1 / max_share of the heaviest, unless the algorithm holds the
    cohort. An empty cohort passes with the adapter as it was.

    Args:
        until: rounds in all, those of `state` with them.
        select: `(clients, round, seed) -> names`, see `shepherd.select`.
        quorum: the share of the cohort, in (0, 1], that must give a usable update.
        seed: of the run; each round and purpose has one of its own from it.
        rank: of the adapter, where some of its tensors stack experts; see `audit.Gap`.
        allow: what each client may say of its visit; see `shepherd.weighing`.
        max_share: the most that one client counts for, in (0, 1]; of n < 1 / max_share clients, 1 / n.

    Raises:
        QuorumNotMet: too few usable updates, for the quorum or for the `min_cohort` of a client whose update
            is among them; the last state yielded stands.
        FederationError: no client at all, or a state that would not be finite.
    """
    while state.round < until:
        started = perf_counter()
        key = partial(seed_for, seed, state.round)
        clients = federation.clients()
        cohort = select(clients, state.round, key("cohort"))
        broadcast = algorithm.broadcast(state, key("clients"))
        inbox = _Inbox(
            federation=federation,
            broadcast=broadcast,
            cohort=cohort,
            expected=blank(algorithm, transform, broadcast),
            transform=transform,
            states=state.transforms,
            gap=Gap(state.adapter, seed, rank=rank),
            allow=allow,
            lightest=min((allow(client).least for client in clients), default=0.0),
            shares=Shares(max_share),
        )
        if cohort:
            updates = inbox.usable(quorum)
            update = algorithm.aggregate(state, updates)  # pulls the clients through one at a time
            _require_no_more(updates)
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


def check(update: Update, expected: Update, allowed: Allowed = ANYTHING) -> None:
    """Law 6, for what can be seen from one update alone.

    Raises:
        UpdateRefused: another round, a weight or a count that what was asked does not allow, several clients
            in one, a tensor missing, extra or misshapen, a number that is not finite, or a metric larger than
            MAX_METRIC.
    """
    if update.round != expected.round:
        raise UpdateRefused(
            f"it answers round {update.round + 1}, not {expected.round + 1}; take the broadcast anew"
        )
    _require_weight(update.weight, allowed)
    if update.count != 1:
        raise UpdateRefused(f"it says it is {update.count} clients; send one update a client")
    try:
        require_same_layout(expected.delta, update.delta, "its change")
        require_same_layout(expected.extra, update.extra, "its extra")
    except AdapterError as error:
        raise UpdateRefused(str(error)) from error
    for name in (*not_finite(update.delta), *not_finite(update.extra)):
        raise UpdateRefused(f"tensor {name} is not finite; lower the learning rate or clip the gradient")
    _require_metrics(update.metrics, allowed)


def _require_weight(weight: float, allowed: Allowed) -> None:
    if not 0 < weight <= MAX_WEIGHT:
        raise UpdateRefused(f"its weight {weight} is not in (0, {MAX_WEIGHT:g}]; fix how it is counted")
    if not allowed.least <= weight <= allowed.most or (allowed.whole and weight != math.floor(weight)):
        kind = "a whole number " if allowed.whole else ""
        span = f"from {allowed.least:.17g} to {allowed.most:.17g}" if allowed.most > allowed.least else ""
        raise UpdateRefused(
            f"its weight {weight:.17g} is not {kind}{span or f'of {allowed.most:.17g}'}, which is all that a"
            f" visit with {allowed.by} allows; count it as the run file says"
        )


def _require_metrics(metrics: Mapping[str, float], allowed: Allowed) -> None:
    for name, value in metrics.items():
        if not abs(value) <= MAX_METRIC:
            raise UpdateRefused(
                f"metric {name} is {float(value):g} and its size may be {MAX_METRIC:g} at most; lower the"
                " learning rate or clip the gradient"
            )
        if name in allowed.counts and not 0 <= value <= allowed.counts[name]:
            raise UpdateRefused(
                f"metric {name} is {float(value):.17g} and a visit has {allowed.counts[name]:.17g} at most;"
                " count it as the run file says"
            )


def _require_finite(state: ServerState) -> None:
    for adapter in (state.adapter, *state.memory.values()):
        for name in not_finite(adapter):
            raise FederationError(
                f"round {state.round + 1} would make tensor {name} not finite; clip the updates "
                "or lower the learning rate, and resume from the round before"
            )


def _require_no_more(updates: Iterator[Update]) -> None:
    """Updates that an algorithm leaves out would count for the quorum all the same."""
    if next(updates, None) is not None:
        raise FederationError(
            "the algorithm stopped before the last update of the round; its aggregate must take them all"
        )


@dataclass
class _Inbox:
    """What came in during one round. Usable updates pass through; their tensors are not kept."""

    federation: Federation
    broadcast: Broadcast
    cohort: Cohort
    expected: Update
    transform: Transform
    states: Any
    """Of the transform, at the server."""
    gap: Gap
    allow: Allow
    lightest: float
    """That an update of any of these clients can be."""
    shares: Shares
    weights: dict[str, float] = field(default_factory=dict)
    capped: list[str] = field(default_factory=list)
    metrics: dict[str, dict[str, float]] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)
    bytes_up: int = 0
    waited: float = 0.0
    _infos: dict[str, ClientInfo] = field(default_factory=dict)

    def usable(self, quorum: float) -> Iterator[Update]:
        """The updates that count, with the weight that they count for.

        An update that may yet be the heaviest waits until it is known not to be, or for the end.
        """
        # map and filter let go of an update before they ask for the next one (law 5); so must this loop
        timed: Iterator[Update | Failure] = iter(partial(self._next, self._answers()), None)
        held: list[Update] = []
        for update in filter(None, map(self._sorted, timed)):
            self.shares.add(update.weight)
            held.append(update)
            del update
            yield from self._counted(held, max(self.lightest, self.shares.cap()))
        self._close(quorum)
        cap = self.shares.last_cap()
        self.capped = [update.client for update in held if update.weight > cap * (1 + ROUNDING)]
        held = [replace(each, weight=cap) if each.client in self.capped else each for each in held]
        yield from self._counted(held, math.inf)

    def report(self, seconds: float) -> RoundReport:
        return RoundReport(
            round=self.broadcast.round + 1,
            cohort=self.cohort,
            weights=self.weights,
            capped=tuple(self.capped),
            metrics=self.metrics,
            failures=self.failures,
            bytes_down=self.broadcast.nbytes * len(self.cohort),
            bytes_up=self.bytes_up,
            gap=self.gap.value(),
            federation_seconds=self.waited,
            seconds=seconds,
        )

    def _answers(self) -> Iterator[Update | Failure]:
        return self.federation.run(self.broadcast, self.cohort)

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
        info = self._info(answer.client)
        if info.min_cohort > len(self.cohort):  # or one client could have every round thrown away
            raise UpdateRefused(
                f"its min_cohort is {info.min_cohort} and {len(self.cohort)} clients were asked; raise"
                " federation.share, or add some"
            )
        allowed = self.allow(info)
        check(answer, self.expected, allowed)
        arrived = self.transform.on_arrival(answer, self.states)
        if arrived is not answer:  # decoded
            check(arrived, self.transform.on_arrival(self.expected, self.states), allowed)
        self.weights[answer.client] = arrived.weight
        self.metrics[answer.client] = dict(arrived.metrics)
        return arrived

    def _info(self, client: str) -> ClientInfo:
        if not self._infos:  # as they are once the first has answered: a site may have joined for this round
            self._infos = {info.name: info for info in self.federation.clients()}
        return self._infos[client]

    def _counted(self, held: list[Update], cap: float) -> Iterator[Update]:
        """Those that do not weigh more than the cap, in their order; they are held no more."""
        place = 0
        while place < len(held):
            if held[place].weight <= cap * (1 + ROUNDING):
                yield self._taken(held.pop(place))
            else:
                place += 1

    def _taken(self, update: Update) -> Update:
        self.weights[update.client] = update.weight
        self.gap.add(update)
        return update

    def _close(self, quorum: float) -> None:
        for client in self.cohort:
            if client not in self.weights:
                self.failures.setdefault(client, "it gave no answer")
        needed = max(1, math.ceil(quorum * len(self.cohort) - 1e-9))  # 0.55 of 100 is 55, not 56
        if len(self.weights) < needed:
            raise QuorumNotMet(
                f"{self._usable_of()} and federation.quorum = {quorum:g} asks for {needed} "
                f"({_listed(self.failures)}); fix those clients or lower federation.quorum"
            )
        strictest = max(self.weights, key=lambda client: self._info(client).min_cohort)
        if len(self.weights) < (fewest := self._info(strictest).min_cohort):
            raise QuorumNotMet(
                f"{self._usable_of()} and {strictest} lets its own into a mean of {fewest} or more alone (its"
                f" min_cohort), so this mean is thrown away ({_listed(self.failures)}); fix those clients"
                " or add some"
            )

    def _usable_of(self) -> str:
        number = self.broadcast.round + 1
        return f"round {number}: {len(self.weights)} of {len(self.cohort)} clients gave a usable update"


def _listed(failures: Mapping[str, str], most: int = 5) -> str:
    if not failures:
        return "no other was asked"
    shown = [f"{client}: {reason}" for client, reason in list(failures.items())[:most]]
    hidden = len(failures) - len(shown)
    return "; ".join(shown) + (f"; and {hidden} more" if hidden else "")
