"""Decide which answers of a round count: every update is checked before it is used (law 6).

These are generators that pass one update on at a time and keep none (law 5). A `for` loop keeps its variable
while it waits for the next value, so each loop here deletes it.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from time import perf_counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shepherd.core import (
    Adapter,
    Broadcast,
    ClientInfo,
    Cohort,
    EndsEarly,
    Expected,
    Failure,
    Federation,
    Layout,
    Method,
    Original,
    Payload,
    Update,
    not_finite,
    require_shapes,
    shapes_of,
)
from shepherd.core.stragglers import staleness_weight
from shepherd.errors import AdapterError, QuorumNotMet, UpdateRefused
from shepherd.rounds.weights import ANYTHING, MAX_WEIGHT, WEIGHT_TOLERANCE, Allow, Allowed, Shares

MAX_METRIC = MAX_WEIGHT
"""Largest absolute value of a metric or of a score's sum or count: their sums and products stay finite."""

MAX_CHANGE = 1e12
"""Largest absolute value in a tensor of an update. Factors of a real visit are below 10; far above this bound
squares and products of factors would leave float32, and one client would end the round for all."""

WHO = "; nobody can tell from a sum which of its clients sent that, so go on with fewer until it is right"
"""Said of a sum of several clients that is refused."""
Answer = Update | Failure
logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundRequest:
    """What one round asked: of which clients, and what an answer may be."""

    method: Method
    federation: Federation
    broadcast: Broadcast
    cohort: Cohort
    transforms: Any
    """The server's state of the transforms."""
    allow: Allow
    quorum: float
    """The share of the cohort, in (0, 1], that must give a usable update."""
    at_work: Mapping[str, int] = field(default_factory=dict)
    """Clients that were not asked, since they have yet to send the update of an earlier round -> that one."""

    def answered(self, client: str) -> int:
        """The round that a client's answer has to be of."""
        return self.at_work.get(client, self.broadcast.round)


@dataclass(slots=True, kw_only=True)
class RoundLog:
    """What came in during a round, without the tensors."""

    weights: dict[str, float] = field(default_factory=dict)
    capped: list[str] = field(default_factory=list)
    metrics: dict[str, dict[str, float]] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)
    late: dict[str, str] = field(default_factory=dict)
    """Client of the cohort that was still at work when the round ended -> what to do about it."""
    carried: dict[str, int] = field(default_factory=dict)
    """Client whose update of an earlier round counts -> how many rounds late it is."""
    bytes_up: int = 0
    counted: dict[str, NDArray[np.float64]] = field(default_factory=dict)
    """Sums over the accepted updates of the tensors that a transform reads of each alike."""
    waited: float = 0.0
    """Seconds of waiting for answers."""
    merged: bool = False
    """Whether an update was of several clients, of which single ones are not known."""
    infos: dict[str, ClientInfo] = field(default_factory=dict)
    """Information on each client, filled at the first answer: a site may have joined for this round."""

    def info(self, federation: Federation, client: str) -> ClientInfo:
        """Information on a client that has answered."""
        if not self.infos:
            self.infos = {info.name: info for info in federation.clients()}
        return self.infos[client]

    def strictest(self, federation: Federation) -> int:
        """The largest `min_cohort` of the clients with a usable update; 1 if there is none."""
        return max((self.info(federation, client).min_cohort for client in self.weights), default=1)


def usable_updates(request: RoundRequest, shares: Shares, log: RoundLog) -> Iterator[Update]:
    """Yield the updates that count, one by one, each with its weight in the mean.

    Raises:
        QuorumNotMet: too few were usable; those that were have been yielded by then.
    """
    answers = measure_waiting(_asked(request), log)
    return cap_weights(request, accept_updates(request, answers, log), shares, log)


def _asked(request: RoundRequest) -> Iterator[Answer]:
    """The answers of a round; where it may end early, only an update that would be accepted counts."""
    federation, trial = request.federation, RoundLog()
    if not isinstance(federation, EndsEarly):
        return federation.run(request.broadcast, request.cohort)

    def usable(update: Update) -> bool:
        try:
            _accept_one(request, update, update.clients, trial)
        except UpdateRefused:
            return False
        return True

    return federation.run_early(request.broadcast, request.cohort, usable)


def measure_waiting(answers: Iterator[Answer], log: RoundLog) -> Iterator[Answer]:
    """Yield the same answers, and add up the time spent waiting for each."""
    while True:
        began = perf_counter()
        try:
            answer = next(answers, None)
        finally:
            log.waited += perf_counter() - began
        if answer is None:
            return
        yield answer
        del answer


def accept_updates(request: RoundRequest, answers: Iterator[Answer], log: RoundLog) -> Iterator[Update]:
    """Yield the answers that are usable updates, decoded; count every other one as a failure."""
    for answer in answers:
        if isinstance(answer, Update):
            log.bytes_up += _bytes_up(request.federation, answer)
        elif answer.late:
            log.late[answer.client] = answer.reason
            continue
        names = answer.clients if isinstance(answer, Update) else (answer.client,)
        try:
            update = _accept_one(request, answer, names, log)
        except UpdateRefused as refusal:
            of_all = _merges(request.federation) and set(names) <= set(request.cohort)
            for name in names if of_all else (answer.client,):
                log.failures.setdefault(name, _reason(request, name, len(names), refusal))
            if request.method.is_private:  # for who looks for a fault: nothing else says it
                logger.debug("client %s: no usable update (%s)", answer.client, refusal)
        else:
            part = update.weight / len(names)
            log.weights.update(dict.fromkeys(names, part))
            if len(names) == 1:
                log.metrics[update.client] = dict(update.metrics)
            log.merged |= len(names) > 1
            for tensor in request.method.transform.counts:
                log.counted[tensor] = log.counted.get(tensor, 0.0) + update.extra[tensor].astype(np.float64)
            yield update
            del update
        del answer


def _reason(request: RoundRequest, client: str, of: int, refusal: UpdateRefused) -> str:
    """Why an answer of so many clients is no usable update; of a late one, which round it is of."""
    if client not in request.at_work:
        return f"{refusal}{WHO}" if of > 1 else str(refusal)
    return f"its late update of round {request.at_work[client] + 1}: {refusal}"


def _merges(federation: Federation) -> bool:
    """Whether a federation itself merges updates, so that one may be of several clients."""
    return getattr(federation, "merges", False)


def _bytes_up(federation: Federation, update: Update) -> int:
    """Bytes that the clients of an update sent: of a sum, each client as many numbers as the sum has."""
    if len(update.clients) == 1:
        return update.nbytes
    return update.nbytes * len(update.clients) * getattr(federation, "ring_bits", 64) // 64


def cap_weights(
    request: RoundRequest, updates: Iterator[Update], shares: Shares, log: RoundLog
) -> Iterator[Update]:
    """Yield the same updates with their weights capped as `shares` allows, then check the quorum.

    An update that may be the heaviest waits until it is known not to be, or for the end: `rounds.weights`.
    """
    lightest = min((request.allow(info).least for info in request.federation.clients()), default=0.0)
    if request.at_work:  # a late one may weigh less
        lightest = 0.0
    held: list[Update] = []
    for update in updates:
        for _ in update.clients:
            shares.add(_weight_per_client(update))
        held.append(update)
        del update
        yield from _release(held, max(lightest, shares.cap()), log)
    require_quorum(request, log)
    cap = shares.last_cap()
    for index, update in enumerate(held):
        if _weight_per_client(update) > cap * (1 + WEIGHT_TOLERANCE):
            log.capped += update.clients
            held[index] = replace(update, weight=cap * len(update.clients))
        del update
    yield from _release(held, math.inf, log)


def _weight_per_client(update: Update) -> float:
    return update.weight / len(update.clients)


def _release(held: list[Update], cap: float, log: RoundLog) -> Iterator[Update]:
    """Yield the held updates whose clients weigh no more than the cap, in order, and stop holding them."""
    index = 0
    while index < len(held):
        if _weight_per_client(held[index]) <= cap * (1 + WEIGHT_TOLERANCE):
            log.weights.update(dict.fromkeys(held[index].clients, _weight_per_client(held[index])))
            yield held.pop(index)
        else:
            index += 1


def _accept_one(request: RoundRequest, answer: Answer, names: tuple[str, ...], log: RoundLog) -> Update:
    _require_asked(request, names, log)
    if isinstance(answer, Failure):
        raise UpdateRefused(answer.reason)
    alone = request.method.aggregation.robust or not _merges(request.federation)
    if len(names) > 1 and alone:
        raise UpdateRefused(f"it claims to be of {len(names)} clients; send one update per client")
    infos = [log.info(request.federation, name) for name in names]
    fewest = max(info.min_cohort for info in infos)
    # a late update comes after the cohort's, and is left out where they are too few for it; others rely on
    # the cohort alone, since late ones may never come
    late = answer.client in request.at_work
    most = len(log.weights) + 1 if late else len(request.cohort)
    if fewest > most and not request.method.is_private:
        # or one client could have every round thrown away
        given = "gave a usable update" if late else "were asked"
        raise UpdateRefused(
            f"its min_cohort is {fewest} and {most} clients {given}; raise selection.share, or add clients"
        )
    expected = request.method.expects(request.broadcast, infos[0])
    allowed = request.allow(infos[0]) if len(infos) == 1 else ANYTHING
    number = request.answered(answer.client)
    check_report(answer, number, allowed)
    arrived = _decode(request, answer, expected)
    if arrived.weight != answer.weight:  # a mechanism controls the weights
        check_report(arrived, number, ANYTHING)
    checked = check_tensors(arrived, expected)
    with np.errstate(over="ignore", invalid="ignore"):
        accepted = request.method.algorithm.accept(checked, allowed.counts)
    if accepted is not checked:
        _require_bounded(accepted, "once what its extra says is applied; correct what the client reports")
    if request.method.transform.mechanism is not None:
        request.method.transform.mechanism.verify(accepted, request.transforms)
    if late:
        rounds = request.broadcast.round - number
        log.carried[answer.client] = rounds
        accepted = replace(accepted, weight=accepted.weight * staleness_weight(rounds))
    return accepted


def _decode(request: RoundRequest, update: Update, expected: Expected) -> Update:
    try:
        original = Original(layout=expected.delta)
        return request.method.transform.at_server(update, request.transforms, original)
    except UpdateRefused:
        raise
    except Exception as error:  # the tensors are not checked yet, and the code may be a plug-in's
        raise UpdateRefused(
            f"the transforms cannot decode its tensors ({type(error).__name__}); apply the run file's"
            " transforms at the client"
        ) from error


def _require_asked(request: RoundRequest, names: tuple[str, ...], log: RoundLog) -> None:
    if not names or len(set(names)) < len(names):
        raise UpdateRefused("it names no client, or names one twice; name each client once")
    for name in names:
        if name not in request.cohort and name not in request.at_work:
            raise UpdateRefused(f"client {name!r} was not asked this round; check who may answer")
        if name in log.weights or name in log.failures:
            raise UpdateRefused("it answered twice, and only the first answer counts; send one answer")


def check(update: Update, expected: Expected, round: int, allowed: Allowed = ANYTHING) -> Update:
    """Check one decoded update by itself (law 6); returns it with its change as an `Adapter`.

    Raises:
        UpdateRefused: it is of another round; its weight or a count is not allowed for its visit; a tensor
            is missing, extra, misshapen, not finite, above MAX_CHANGE or of another dtype; or a metric is
            above MAX_METRIC.
    """
    check_report(update, round, allowed)
    return check_tensors(update, expected)


def check_report(update: Update, round: int, allowed: Allowed) -> None:
    """Raise UpdateRefused unless the round, the weight, the metrics and every tensor's values are allowed."""
    if update.round != round:
        raise UpdateRefused(
            f"it answers round {update.round + 1}, not {round + 1}; answer the current broadcast"
        )
    _require_weight(update.weight, allowed)
    for name in (*not_finite(update.delta), *not_finite(update.extra)):
        raise UpdateRefused(f"tensor {name} is not finite; lower the learning rate or clip the gradient")
    _require_metrics(update.metrics, allowed)


def check_tensors(update: Update, expected: Expected) -> Update:
    """Check an update's tensors against what the round expects; returns it with its change as an `Adapter`.

    Raises:
        UpdateRefused: a tensor is missing, extra, misshapen, not finite, above MAX_CHANGE or of
            another dtype.
    """
    try:
        _require_float32(update.delta, expected.delta, "its change")
        _require_float32(update.extra, expected.extra, "its extra")
    except AdapterError as error:
        raise UpdateRefused(str(error)) from error
    _require_bounded(update, "after decoding; clip the update")
    if isinstance(update.delta, Adapter):
        return update
    return replace(update, delta=Adapter(update.delta))


def _require_bounded(update: Update, when: str) -> None:
    """Raise UpdateRefused, naming the tensor, unless all numbers of an update are within MAX_CHANGE."""
    for tensors in (update.delta, update.extra):
        for name, tensor in tensors.items():
            largest = max(float(tensor.max()), -float(tensor.min())) if tensor.size else 0.0
            if not math.isfinite(largest):
                raise UpdateRefused(f"tensor {name} is not finite {when}")
            if largest > MAX_CHANGE:
                raise UpdateRefused(
                    f"tensor {name} has a value of {largest:.3g}, and at most {MAX_CHANGE:g} in absolute"
                    f" value is allowed, {when}"
                )


def _require_float32(got: Payload, expected: Layout, what: str) -> None:
    require_shapes(expected, shapes_of(got), what)
    for name, tensor in got.items():
        if tensor.dtype != np.float32:
            raise AdapterError(
                f"tensor {name} in {what} is {tensor.dtype}, not float32, after decoding; list the transform"
                " that encoded it in the run file"
            )


def _require_weight(weight: float, allowed: Allowed) -> None:
    if not 0 < weight <= MAX_WEIGHT:
        raise UpdateRefused(
            f"its weight {weight} is not in (0, {MAX_WEIGHT:g}]; correct how the client computes it"
        )
    if not allowed.least <= weight <= allowed.most or (allowed.whole and weight != math.floor(weight)):
        due = f"{allowed.most:.17g}"
        if allowed.most > allowed.least:
            due = f"a {'whole ' * allowed.whole}number from {allowed.least:.17g} to {due}"
        raise UpdateRefused(
            f"its weight {weight:.17g} is not {due}, as a visit with {allowed.by} requires; compute it as the"
            " run file says"
        )


def _require_metrics(metrics: Mapping[str, float], allowed: Allowed) -> None:
    for name, value in metrics.items():
        if not abs(value) <= MAX_METRIC:
            raise UpdateRefused(
                f"metric {name} is {float(value):g}, and at most {MAX_METRIC:g} in absolute value is allowed;"
                " lower the learning rate or clip the gradient"
            )
        if name in allowed.counts and not 0 <= value <= allowed.counts[name]:
            raise UpdateRefused(
                f"metric {name} is {float(value):.17g}, and a visit of this run has from 0 to"
                f" {allowed.counts[name]:.17g}; count it as the run file says"
            )


def require_quorum(request: RoundRequest, log: RoundLog) -> None:
    """Count clients without an answer as failures; raise QuorumNotMet if too few clients are in the mean."""
    for client in request.cohort:
        if client not in log.weights and client not in log.late:
            log.failures.setdefault(client, "it gave no answer")
    number, count = request.broadcast.round + 1, len(log.weights)
    mechanism = request.method.transform.mechanism
    if mechanism is not None:
        _require_shares(mechanism.honest, request, log)
        _require_own_cohorts(request, log)
        return
    least, lost = needed(request.quorum, len(request.cohort)), {**log.failures, **log.late}
    in_time = count - len(log.carried)
    have = f"round {number}: {in_time} of {len(request.cohort)} clients gave a usable update"
    if in_time < least:
        raise QuorumNotMet(
            f"{have} and federation.quorum = {request.quorum:g} requires {least} "
            f"({failure_list(lost)}); do what these say and resume, or start a run with a lower"
            " federation.quorum"
        )
    if count < (smallest := request.method.aggregation.smallest_cohort):
        raise QuorumNotMet(
            f"{have} and the aggregation requires {smallest} ({failure_list(lost)}); put right"
            " what failed and resume, or start a run with a larger selection.share or another aggregation"
        )
    strictest = max(log.weights, key=lambda client: log.info(request.federation, client).min_cohort)
    if count < (fewest := log.info(request.federation, strictest).min_cohort):
        raise QuorumNotMet(
            f"{have} and client {strictest} requires a mean of at least {fewest} (its min_cohort), so this"
            f" mean is discarded ({failure_list(lost)}); put right what failed and resume, or add clients"
        )


def needed(quorum: float, cohort: int) -> int:
    """Fewest usable updates of a cohort of this size; 1 or more.

    >>> needed(0.55, 100)
    55
    """
    return max(1, math.ceil(quorum * cohort - 1e-9))


def _require_shares(honest: int, request: RoundRequest, log: RoundLog) -> None:
    """Raise QuorumNotMet unless enough clients are in the sum, where each adds a share of its noise."""
    if len(log.weights) < honest:
        raise QuorumNotMet(
            f"round {request.broadcast.round + 1}: {len(log.weights)} of {len(request.cohort)} clients gave a"
            f" usable update, and the shares of noise of at least {honest} (honest under [[transforms]]) hide"
            " one of them, so nothing of the round is released; resume to repeat it, or raise selection.share"
        )


def with_counts(aggregate: Update, log: RoundLog) -> Update:
    """The aggregate with plain means in place of the tensors that a transform reads of each update alike."""
    means = {name: (total / len(log.weights)).astype(np.float32) for name, total in log.counted.items()}
    return replace(aggregate, extra=Payload({**aggregate.extra, **means})) if means else aggregate


def require_own_means(request: RoundRequest, aggregate: Update, log: RoundLog) -> None:
    """Raise QuorumNotMet if an aggregation chose fewer clients than one of them requires (law 11)."""
    if not request.method.aggregation.chooses:
        return
    fewest, strictest = max(
        ((log.info(request.federation, client).min_cohort, client) for client in aggregate.clients),
        default=(0, ""),
    )
    if len(aggregate.clients) < fewest:
        raise QuorumNotMet(
            f"round {request.broadcast.round + 1}: the aggregation keeps {len(aggregate.clients)} of"
            f" {len(log.weights)} clients and client {strictest} requires a mean of at least {fewest} (its"
            " min_cohort), so it is discarded; have the aggregation keep more, or choose another one"
        )


def _require_own_cohorts(request: RoundRequest, log: RoundLog) -> None:
    """Raise QuorumNotMet if a client's own `min_cohort` is not met, in a round whose sum gets noise.

    Nothing else fails such a round: a client without a usable update counts as zero, however many there are.
    To leave a client out because of the others would change the sum by more than the noise hides.
    """
    if 0 < len(log.weights) < log.strictest(request.federation):
        raise QuorumNotMet(
            f"round {request.broadcast.round + 1}: fewer clients than the min_cohort of one of them gave a"
            " usable update, so nothing of the round is released; resume to repeat it, raise selection.share,"
            " or have the clients lower min_cohort, since the noise hides each of them"
        )


def failure_list(failures: Mapping[str, str], most: int = 5) -> str:
    if not failures:
        return "no other client was asked"
    shown = [f"{client}: {reason}" for client, reason in list(failures.items())[:most]]
    hidden = len(failures) - len(shown)
    return "; ".join(shown) + (f"; and {hidden} more" if hidden else "")
