"""A site's trainer: a separate process that holds the base and the data and answers requests.

    python -m shepherd.silos.site.trainer site.toml --name site-1 --home KIT/shepherd

It does not depend on FLARE: messages of `silos.protocol.wire` arrive and leave through a Unix socket. The
base stays loaded across rounds and runs. An error while handling a request becomes its reply.
"""

from __future__ import annotations

import argparse
import logging
import logging.handlers
import os
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from datetime import datetime
from pathlib import Path
from time import monotonic

from shepherd import plugins
from shepherd.core import (
    Adapter,
    Algorithm,
    Broadcast,
    ClientInfo,
    Failure,
    FromSystem,
    Payload,
    Transform,
    Update,
    seed_for,
)
from shepherd.data import cursor, dataset
from shepherd.data.dataset import TokenisedData
from shepherd.errors import ShepherdError, UpdateRefused
from shepherd.evaluate import loss
from shepherd.federation.clients import Batches, LocalClients, of_algorithm
from shepherd.io.atomic import disk_errors
from shepherd.io.progress import stage
from shepherd.machine import memory
from shepherd.model.base import Base
from shepherd.privacy import accountant
from shepherd.rounds.ranks import rank_at_site
from shepherd.settings import RunSettings
from shepherd.silos.protocol import ipc, schema, wire
from shepherd.silos.protocol.wire import Asked, Ready, Reply, Request, Scores, SumRequest
from shepherd.silos.site import (
    allowed_bases,
    audit,
    policy,
    privacy_ledger,
    redaction,
    released,
    request_checks,
    secure_sums,
)
from shepherd.silos.site.audit import Released
from shepherd.silos.site.data_cache import DataCache
from shepherd.silos.site.policy import MonthUsage, Refusal, Visit
from shepherd.silos.site.released import Score
from shepherd.silos.site.secure_sums import SecureSums
from shepherd.silos.site.site_settings import (
    SiteSettings,
    parse_request,
    read,
    scoring_settings,
    settings_at_site,
)
from shepherd.silos.site.site_store import AnsweredRound, RunRecord, Store
from shepherd.silos.site.task import Answer, Task, wait_for
from shepherd.training import score, tune
from shepherd.training.local import LocalTraining, local_training, require_steps_of
from shepherd.training.tune import Job, Progress, TuningResult
from shepherd.visible import in_this_process

LOG = "trainer.log"
HOUR_S = 3600.0
MAX_QUEUED_RUNS = 4
"""Most runs whose requests are queued: each holds an adapter in memory."""
MAX_ANSWERS = 20
"""Most answers to one request in a month: lost connections need fewer."""

log = logging.getLogger("shepherd.silos.site.trainer")  # also when run as __main__


class Trainer:
    """Answers the requests to a site, one at a time."""

    def __init__(self, settings: SiteSettings, name: str, home: Path) -> None:
        self.settings, self.name, self.home = settings, name, home
        if settings.policy.require_privacy:
            accountant.require()
        with disk_errors(home):
            home.mkdir(parents=True, exist_ok=True)
            home.chmod(0o700)
        if settings.policy.require_privacy:
            privacy_ledger.count_lines(self._ledger())
        audit.count_month(home / audit.FILE, audit.month_of(_now()))  # tell the owner now if it is not whole
        self.store, self.cache = Store(home), DataCache(home, name)
        self.sums = SecureSums(
            name, self.store, settings.policy, lambda: secure_sums.kit_signer(home, settings.policy)
        )
        self._allowed = allowed_bases.allowed(settings.bases)
        self._worker = ThreadPoolExecutor(1)  # a single thread, so one visit at a time
        self._lock = threading.Lock()
        self._tasks: dict[str, Task] = {}  # the last task of each run
        self._joins: deque[float] = deque()  # times of the last requests to join

    def handle(self, message: bytes) -> bytes:
        """Answer a request, both as bytes; never raises."""
        received = monotonic()
        try:
            request = wire.decode_asked(message)
        except Exception as error:
            log.error("a message was refused: %s", redaction.log_message(error))
            return self._failure(redaction.server_message(error))
        try:
            if isinstance(request, SumRequest):
                answer = self._summed(request, len(message))
            else:
                answer = self._answer(request, received, len(message))
                self._record(audit.answered_event(request, _now(), answer.left))
            size = len(answer.message)
            log.info("%s answered in %.1f s: %d bytes", _request_name(request), monotonic() - received, size)
            return answer.message
        except request_checks.RequestRefused as error:
            return self._refused(request, error.refusal)
        except Exception as error:
            return self._failed(request, error)

    def stop(self) -> None:
        """Cancel all tasks."""
        with self._lock:
            for task in self._tasks.values():
                task.cancel()

    # decisions without work -------------------------------------------------------------------------------

    def _answer(self, request: Request, received: float, size: int) -> Answer:
        request_checks.require_version(request, self.name)
        request_checks.require_clock(request, size)
        request_checks.require_id(request, self.name)
        request_checks.require_sound(request)
        self._require_allowed(request)
        secure_sums.require_trainable(self.name, request, self.settings.policy)
        secure_sums.require_no_downgrade(self.name, request, self.store)
        if request.kind == "join":
            self._require_few_joins()
        kept = self._kept_answer(request)
        if kept is not None:
            self._require_few_answers(request)
            return kept
        if request.kind == "join" and (examples := self._examples_held(request)):
            self._require_allowed(request, examples)
            self._require_budget(self._settings_here(request), examples)
            return _to_answer(self._ready(request, examples))
        task = self._submit(request, received + request.deadline)
        return wait_for(task, received + request.deadline)

    def _summed(self, request: SumRequest, size: int) -> Answer:
        """Answer a phase of a secure sum at once, whatever is being trained."""
        request_checks.require_version(request, self.name)
        request_checks.require_clock(request, size)
        reply, sites = self.sums.answer(request)
        message = wire.encode_reply(reply)
        left = Released(bytes=len(message), masked=request.kind == "masked")
        self._record(audit.sum_event(request, _now(), left, sites))
        return Answer(message, left)

    def _require_allowed(
        self,
        request: Request,
        examples: int | None = None,
        different: int | None = None,
        scored: int | None = None,
    ) -> None:
        """Raise Refused by the rules on the settings; without `examples`, only by those that need no data."""
        request_checks.raise_refusal(
            policy.refusal(
                self.settings.policy,
                request,
                site=self.name,
                bases=self._allowed,
                examples=examples,
                different=different,
                scored=scored,
                scoring=self.settings.scoring,
            )
        )

    def _require_allowed_now(self, request: Request) -> None:
        """Raise Refused by the rules on the cohort, the hours and the budget."""
        now = _now()
        granted = self._granted(request, now)
        request_checks.raise_refusal(
            policy.refusal_now(self.settings.policy, request, site=self.name, granted=granted, now=now)
        )

    def _granted(self, request: Request, now: datetime) -> MonthUsage:
        asked = (request.run, request.round, request.id)
        return audit.month_usage(self.home / audit.FILE, audit.month_of(now), kind=request.kind, asked=asked)

    def _require_few_joins(self) -> None:
        most = self.settings.trainer.joins_per_hour
        with self._lock:
            now = monotonic()
            while self._joins and self._joins[0] < now - HOUR_S:
                self._joins.popleft()
            if len(self._joins) >= most:
                raise request_checks.RequestRefused(
                    "joins_per_hour",
                    f"{self.name} was asked to join {most} times within an hour; try again later",
                )
            self._joins.append(now)

    def _require_few_answers(self, request: Request) -> None:
        if self._granted(request, _now()).answers >= MAX_ANSWERS:
            raise request_checks.RequestRefused(
                "replay",
                f"{self.name} has sent this answer {MAX_ANSWERS} times; continue with the next round",
            )

    def _kept_answer(self, request: Request) -> Answer | None:
        """The answer that this request got before, limited by the current policy; None if it got none.

        Raises:
            Refused: another request for this round or a later one was answered; or the current policy refuses
                the answer.
        """
        if request.kind == "join":
            return None
        record = self.store.record(request.run)
        if request.kind == "score":
            return self._kept_score(request, record)
        if record.spent and record.id == request.id:
            raise redaction.Diverged(
                "this visit was made before, and diverged to numbers that are not finite"
            )
        kept = self.store.answered(request.run, request.id)
        if kept is None and request.round <= record.round:
            again = (
                "another request" if request.id != record.id else "a request whose answer is no longer kept"
            )
            raise request_checks.RequestRefused(
                "replay",
                f"{self.name} has answered round {record.round + 1} of this run, and got {again} for round"
                f" {request.round + 1}; if the server has lost rounds, use `shepherd silos new-id`",
            )
        if kept is None:
            return None
        self._require_allowed(request, kept.examples, kept.different)
        return self._trained(request, kept.update)

    def _kept_score(self, request: Request, record: RunRecord) -> Answer | None:
        """Like `_kept_answer`, with one request a round: scores of two similar adapters reveal much."""
        if (record.scored, record.scored_id) == (request.round, request.id):
            if record.score is None:  # written by an earlier version
                return None
            scores = released.still_releasable(record.score, self.settings.policy.min_examples)
            self._require_allowed(request, scored=sum(each.examples for each in scores.values()))
            return _to_answer(*self._scores(request, scores))
        if request.round <= max(record.scored, record.round):
            raise request_checks.RequestRefused(
                "replay",
                f"{self.name} has trained or scored this run after {max(record.scored, record.round)} rounds,"
                f" and got another request to score it after {request.round}; continue without its score",
            )
        return None

    def _examples_held(self, request: Request) -> int:
        """Number of examples, if base and data are loaded, so that joining need not queue; else 0."""
        if self.cache.digest != request.base:
            return 0
        settings = self._settings_here(request)
        prepared = self.cache.ready(
            settings,
            request.base,
            self._max_length(settings),
            paired=self._training(settings).paired,
        )
        return len(prepared.clients[self.name]) if prepared else 0

    def _submit(self, request: Request, until: float) -> Task:
        with self._lock:
            task = self._tasks.get(request.run)
            if task is not None and task.request.id == request.id and not task.cancelled:
                task.until = max(task.until, until)
                return task
            self._require_allowed_now(request)  # before another task is cancelled for it
            if task is not None:
                request_checks.require_newer(request, task.request, self.name)
                task.cancel()
            elif len(self._tasks) > MAX_QUEUED_RUNS:
                raise request_checks.RequestRefused(
                    "busy",
                    f"{self.name} is working for one run and {MAX_QUEUED_RUNS} others are queued; try again"
                    " later",
                )
            task = self._tasks[request.run] = Task(request, until)
            task.future = self._worker.submit(self._work, task)
            return task

    # work, in its own thread ------------------------------------------------------------------------------

    def _work(self, task: Task) -> Answer:
        try:
            task.require_awaited()
            kept = self._kept_answer(task.request)
            return kept if kept is not None else self._carry_out(task)
        finally:
            with self._lock:
                if self._tasks.get(task.request.run) is task:
                    del self._tasks[task.request.run]

    def _carry_out(self, task: Task) -> Answer:
        request, settings = task.request, self._settings_here(task.request)
        if request.kind == "score":
            return self._score(task, settings)
        prepared = self.cache.data(settings, request.base, paired=self._training(settings).paired)
        examples = len(prepared.clients[self.name])
        self._require_allowed(request, examples)
        self._require_allowed_now(request)  # again, since it may have been queued
        self._require_budget(settings, examples)
        self._require_apart(request, settings)
        clients = self._clients(request, settings, prepared)
        batches = clients.batches(self.name, self.store.record(request.run).position)
        visit = _visit_of(batches, settings, examples, clients.training)
        self._record(audit.granted_event(request, _now(), visit=visit))
        task.require_awaited()
        base = self.cache.base(settings, request.base, self._max_length(settings))
        dataset.require_readable(prepared, base)
        task.require_awaited()
        if request.broadcast is None:
            return _to_answer(self._ready(request, examples))
        request_checks.require_fit(request.broadcast, base)
        clients = replace(clients, micro_batch_tokens=self._micro_batch(base))
        before = self.store.before(request.run, request.round)
        with redaction.of_the_examples():
            job = _job(request.broadcast, clients, self.name, batches, before)
            tune.require_possible(base, job)
        self._spend(request, settings, examples)  # last: what refuses a visit must have done so
        return self._train(task, settings, clients, base, job, batches, visit, before)

    def _require_budget(self, settings: RunSettings, examples: int) -> None:
        """Raise Refused if the site's privacy budget does not allow a visit of this run."""
        limits = self.settings.policy
        spent, allowed = policy.spending(limits, settings, examples), self._budgets(examples)
        if spent or allowed:
            request_checks.require_accountant(self.name)
            self._refuse_over(privacy_ledger.refusal(self._ledger(), allowed, spent))

    def _require_apart(self, request: Request, settings: RunSettings) -> None:
        """Raise Refused if the visit is nearer to this site's last one than the noise on the sums hides."""
        mechanism = policy.mechanism_of(self.settings.policy, settings)
        last = self.store.record(request.run).round
        if request.kind == "train" and mechanism is not None and 0 <= last > request.round - mechanism.apart:
            raise request_checks.RequestRefused(
                "privacy",
                f"{self.name} trained in round {last + 1} of this run and is asked again in round"
                f" {request.round + 1}, and the noise of its transforms hides rounds that are"
                f' {mechanism.apart} or more apart; set [selection] name = "round_robin" with less share',
            )

    def _spend(self, request: Request, settings: RunSettings, examples: int) -> None:
        """Enter what a visit spends into the ledger, before the visit begins; raise Refused if it may not."""
        limits = self.settings.policy
        when = _now().isoformat(timespec="seconds")
        entries = [
            privacy_ledger.Entry(
                when=when,
                run=request.run,
                round=request.round,
                id=request.id,
                unit=unit,
                spent=spent,
                examples=examples,
            )
            for unit, spent in policy.spending(limits, settings, examples)
        ]
        if entries:
            allowed = self._budgets(examples)
            self._refuse_over(privacy_ledger.spend(self._ledger(), allowed, entries))

    def _budgets(self, examples: int) -> list[privacy_ledger.Budget]:
        """What the owner allows, at a delta for all examples of any run, though this one may use fewer."""
        if self.settings.policy.max_epsilon is None:
            return []
        most = max(examples, privacy_ledger.most_examples(self._ledger()))
        return policy.budgets(self.settings.policy, most)

    def _ledger(self) -> privacy_ledger.Ledger:
        return privacy_ledger.ledger_of(self.home, self.settings.data)

    def _refuse_over(self, would_be: str | None) -> None:
        if would_be is not None:
            refusal = policy.over_budget(self.settings.policy, self.name, would_be)
            request_checks.raise_refusal(refusal)

    def _settings_here(self, request: Request) -> RunSettings:
        return settings_at_site(
            self.settings, request.settings, allowed_bases.find(self.settings.bases, request.base)
        )

    def _max_length(self, settings: RunSettings) -> int:
        """Length in tokens of the longest example that the base has to process."""
        scores = self.settings.scoring.max_tokens if "heldout" in self.settings.policy.metrics else 0
        return max(settings.data.max_tokens, scores)

    def _micro_batch(self, base: Base) -> int:
        """Tokens in one pass: as in a simulation of this base, up to the owner's limit."""
        return min(memory.micro_batch(base), self.settings.trainer.micro_batch_tokens)

    def _order_seed(self, request: Request) -> int:
        """Seed of the order of the examples: secret, and different for each run."""
        if self.settings.trainer.order_seed is not None:
            return self.settings.trainer.order_seed
        return seed_for(self.store.secret(), "order", request.run)

    def _clients(self, request: Request, settings: RunSettings, prepared: TokenisedData) -> LocalClients:
        """This site's data as a set of one client."""
        limits = self.settings.policy
        algorithm = self._algorithm(settings)
        training = self._training(settings)
        require_steps_of(algorithm, training.optimiser, settings)
        transform = plugins.transform(settings.transforms, limits.transforms)
        known = self.settings.trainer.order_seed is not None
        return LocalClients(
            datasets=prepared.trained_on,
            algorithm=algorithm,
            transform=transform,
            tuning=settings.tuning,
            federation=settings.federation,
            micro_batch_tokens=self.settings.trainer.micro_batch_tokens,
            order_seed=self._order_seed(request),
            training=training,
            min_batch=limits.min_batch,
            min_examples=limits.min_examples,
            cap_nats=released.CAP_NATS,
            ranks=self._fewer_ranks(settings),
            # draws from the broadcast's seed would let the server remove noise and masks; only tests set an
            # order seed, and then draw like a simulation
            draws=None if known and transform.mechanism is None else FromSystem(),
            privacy=settings.privacy.examples,
        )

    def _training(self, settings: RunSettings) -> LocalTraining:
        limits = self.settings.policy
        return local_training(settings.tuning, {*limits.optimisers, *limits.objectives})

    def _algorithm(self, settings: RunSettings) -> Algorithm:
        return plugins.algorithm(settings.algorithm, self.settings.policy.algorithms)

    def _fewer_ranks(self, settings: RunSettings) -> dict[str, int]:
        """How many ranks this site trains, under its name, if they are not all."""
        rank = rank_at_site(settings.adapter, self.name, self.settings.policy.max_rank)
        return {self.name: rank} if rank < settings.adapter.rank else {}

    def _ready(self, request: Request, examples: int) -> Ready:
        adapter, limits = parse_request(request.settings).adapter, self.settings.policy
        return Ready(
            client=self.name,
            examples=examples,
            min_cohort=limits.min_cohort,
            rank=rank_at_site(adapter, self.name, limits.max_rank),
            version=wire.version(),
        )

    def _train(
        self,
        task: Task,
        settings: RunSettings,
        clients: LocalClients,
        base: Base,
        job: Job,
        batches: Batches,
        visit: Visit,
        before: AnsweredRound | None,
    ) -> Answer:
        request, name = task.request, self.name
        assert request.broadcast is not None
        start = batches.position - visit.taken
        if before is None and start:
            log.warning("%s the client memory is lost; continuing with an empty one", _request_name(request))
        remembered = before.memory if before else Payload()
        examples, position = clients.size(name), batches.position
        mechanism = clients.transform.mechanism
        try:
            with redaction.of_the_examples():
                tuned = _tuned(task, base, job)
                answer, memory = clients.update(request.broadcast, tuned, remembered)
            if not (mechanism and mechanism.honest):  # else its noise hides that, too
                request_checks.require_finite(tuned.delta, tuned.extra)  # codes do not show it
            request_checks.require_finite(answer.delta, answer.extra)
        except (redaction.Diverged, UpdateRefused) as error:
            # reveals something about the examples, so never repeated
            self.store.spend(request.run, request.round, request.id, position)
            raise redaction.Diverged(str(error)) from error
        metrics = released.of_a_visit(
            answer.metrics,
            comparable=self._is_comparable(settings, examples, start, position),
            known=_is_known(clients.algorithm, request.broadcast, before),
        )
        task.commit()
        kept = AnsweredRound(
            round=request.round,
            id=request.id,
            update=replace(answer, metrics=metrics),
            start=start,
            position=position,
            different=visit.different,
            examples=examples,
            memory=memory,
            moved=_moved(settings, clients.transform, tuned.delta, answer.delta),
            adapter=request.broadcast.adapter,
            base=request.base,
            settings=request.settings,
        )
        self.store.save(request.run, kept)
        return self._trained(request, kept.update)

    def _trained(self, request: Request, update: Update) -> Answer:
        """The answer to a request to train: the update, or under [secure] nothing of it but its length."""
        if parse_request(request.settings).secure is not None:
            return _to_answer(self.sums.trained(request, update))
        metrics = released.released_metrics(self.settings.policy, update.metrics)
        return _to_answer(replace(update, metrics=metrics))

    def _is_comparable(self, settings: RunSettings, examples: int, start: int, end: int) -> bool:
        """Whether the visit's metrics reveal nothing in combination with other released numbers."""
        least = self.settings.policy.min_examples
        return released.is_rendered_as_scored(settings.data, self.settings.scoring) and all(
            released.cuts_fairly(examples, position, least) for position in (start, end)
        )

    def _score(self, task: Task, settings: RunSettings) -> Answer:
        request, scoring = task.request, self.settings.scoring
        assert request.broadcast is not None
        held = self.cache.heldout(scoring_settings(self.settings, settings), request.base)
        categories = dataset.categories(held)
        places = loss.stratified_subset(categories, scoring.examples)
        names = [schema.sentence(categories[i])[: schema.MAX_NAME_CHARS] for i in places]
        least = self.settings.policy.min_examples
        behind = released.behind(names, least)
        self._require_allowed(request, scored=sum(behind.values()))
        adapter = self._scorable(request, request.broadcast, settings)
        self._require_allowed_now(request)  # again, since it may have been queued
        self._record(audit.granted_event(request, _now(), scoring=scoring, behind=behind))
        task.require_awaited()
        base = self.cache.base(settings, request.base, self._max_length(settings))
        dataset.require_readable(held, base)
        request_checks.require_fit(request.broadcast, base)
        data = held.heldout.take(places)
        micro_batch = self._micro_batch(base)
        with redaction.of_the_examples():
            sums = score.losses(base, [adapter], data, micro_batch=micro_batch, cap_nats=released.CAP_NATS)[0]
        found = released.scores(sums, tune.predictions(data), names, least)
        task.commit()
        common = request.broadcast.adapter if self._algorithm(settings).personal else None
        self.store.save_score(request.run, request.round, request.id, found, common)
        return _to_answer(*self._scores(request, found))

    def _scores(
        self, request: Request, found: Mapping[str, Score]
    ) -> tuple[Scores, dict[str, dict[str, float]]]:
        """A score as it is sent, and as the audit log records it."""
        by_name = {name: (each.mean * each.tokens, each.tokens) for name, each in found.items()}
        reply = Scores(client=self.name, round=request.round, categories=by_name)
        return reply, {name: asdict(each) for name, each in found.items()}

    def _scorable(self, request: Request, broadcast: Broadcast, settings: RunSettings) -> Adapter:
        """The adapter to score: one near the last that this site trained, or one that changes nothing.

        Where the server's adapter is no model by itself, it is completed by what this site keeps.

        Raises:
            Refused: the adapter is neither.
        """
        algorithm = self._algorithm(settings)
        if algorithm.server_is_model and released.is_blank(broadcast.adapter):
            # with B = 0, A has no effect, but large values in it could still overflow
            return broadcast.adapter.times(0.0)
        before = self.store.before(request.run, request.round)
        if not _is_known(algorithm, broadcast, before):
            raise request_checks.RequestRefused(
                "scoring",
                f"{self.name} scores only an adapter that changes nothing yet, or one near the last that it"
                f" trained in the {released.MAX_ROUNDS_SINCE_TRAINED} rounds before, and this is neither;"
                " continue without its score",
            )
        if algorithm.server_is_model or before is None:
            return broadcast.adapter
        own = ClientInfo(name=self.name, examples=before.examples)
        return algorithm.start(broadcast, of_algorithm(before.memory), own)

    # refusals, failures and the audit log -----------------------------------------------------------------

    def _refused(self, request: Asked, refusal: Refusal) -> bytes:
        log.warning("%s refused: %s", _request_name(request), refusal.sentence)
        self._record_if_possible(lambda: audit.refused_event(request, _now(), refusal))
        return self._failure(refusal.sentence)

    def _failed(self, request: Asked, error: Exception) -> bytes:
        log.error("%s failed: %s", _request_name(request), redaction.log_message(error))
        self._record_if_possible(lambda: audit.failed_event(request, _now(), error))
        return self._failure(redaction.server_message(error))

    def _failure(self, reason: str) -> bytes:
        return wire.encode_reply(Failure(client=self.name, reason=reason))

    def _record(self, event: audit.Event) -> None:
        audit.record(self.home / audit.FILE, event)

    def _record_if_possible(self, make: Callable[[], audit.Event]) -> None:
        """Record an event, best effort: an audit error must not change a refusal or a failure."""
        try:
            self._record(make())
        except ShepherdError as error:
            log.error("%s", error)


def _visit_of(batches: Batches, settings: RunSettings, examples: int, training: LocalTraining) -> Visit:
    """The length of a visit; what to expect of it, where what was drawn must stay secret."""
    if settings.privacy.examples is not None:
        return policy.visit_length(settings, examples)
    steps = batches.indices
    group = training.objective.group_size
    return Visit(len(steps), sum(map(len, steps)) // group, cursor.different(steps) // group)


def _job(
    broadcast: Broadcast, clients: LocalClients, name: str, batches: Batches, before: AnsweredRound | None
) -> Job:
    """What is tuned in a visit, from what the site remembers of the one before."""
    visit = clients.visit(broadcast, name, batches)
    return clients.job(
        broadcast, [clients.with_memory(broadcast, visit, before.memory if before else Payload())]
    )


def _tuned(task: Task, base: Base, job: Job) -> TuningResult:
    with stage("tuning", sum(visit.tokens for visit in job.visits)) as now:

        def watch(progress: Progress) -> None:
            now.advance(progress.tokens - now.done)
            task.require_awaited()

        (tuned,) = tune.tune(base, job, watch)
    return tuned


def _moved(settings: RunSettings, transform: Transform, tuned: Payload, sent: Payload) -> float:
    """How long an update counts where an adapter has to be near it; nothing of the update under [secure].

    Whether a score is refused shows this number, and masks are to hide the update's own.
    """
    if settings.secure is not None:
        return min(transform.norm, released.MAX_COUNTED_LENGTH)
    return min(tuned.norm(), sent.norm())  # a coded update may have any length


def _is_known(algorithm: Algorithm, broadcast: Broadcast, trained: AnsweredRound | None) -> bool:
    """Whether an adapter changes nothing yet, or is near the last that this site trained.

    Where this site keeps B, one with B = 0 is not blank: its A acts through the B that is kept.
    """
    blank = released.is_blank(broadcast.adapter)
    if blank and (algorithm.server_is_model or trained is None or not of_algorithm(trained.memory)):
        return True
    if trained is None or trained.adapter is None:
        return False
    return released.is_near(broadcast.adapter, broadcast.round, trained.adapter, trained.round, trained.moved)


def _now() -> datetime:
    return datetime.now().astimezone()


def _request_name(request: Asked) -> str:
    return f"run {request.run}, round {request.round + 1}, {request.kind}:"


def _to_answer(reply: Reply, scores: dict[str, dict[str, float]] | None = None) -> Answer:
    """Encode a reply, with its entry for the audit log."""
    message = wire.encode_reply(reply)
    match reply:
        case Update() as update:
            tensors = len(update.delta) + len(update.extra)
            metrics = dict(sorted(update.metrics.items()))
            return Answer(message, Released(bytes=len(message), tensors=tensors, metrics=metrics))
        case _:
            return Answer(message, Released(bytes=len(message), scores=scores or {}))


# the process -----------------------------------------------------------------------------------------------


def main(words: Sequence[str] | None = None) -> int:
    """Serve until SIGTERM, or until the parent process is gone; return 2 if it cannot start."""
    given = _parser().parse_args(words)
    stopped = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopped.set())
    threading.Thread(target=_stop_with_parent, args=(os.getppid(), stopped), daemon=True).start()
    try:
        trainer = Trainer(read(given.site), given.name, given.home)
        _log_to(given.home / LOG)
        log.info("%s is read only at the start; restart the site after changing it", given.site)
        most = allowed_bases.max_message_bytes(trainer.settings.bases, trainer.settings.policy.max_rank)
        place = ipc.choose_address(given.home)
        ipc.serve(place, trainer.handle, lambda: log.info("ready"), stopped, most)
    except ShepherdError as error:
        print(error, file=sys.stderr)
        return 2
    trainer.stop()
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m shepherd.silos.site.trainer")
    parser.add_argument("site", type=Path, metavar="SITE.toml")
    parser.add_argument("--name", required=True, help="the site's name in the federation")
    parser.add_argument("--home", type=Path, required=True, help="folder for the site's state and logs")
    return parser


def _log_to(path: Path) -> None:
    """Log only this package's lines: those of a library might quote data."""
    with disk_errors(path.parent):
        handler = logging.handlers.RotatingFileHandler(path, maxBytes=2**20, backupCount=3, encoding="utf8")
        path.chmod(0o600)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    ours = logging.getLogger("shepherd")
    ours.setLevel(logging.INFO)
    ours.addHandler(handler)


def _stop_with_parent(parent: int, stopped: threading.Event) -> None:
    """Stop when the parent is gone, so that a killed supervisor leaves no trainer behind."""
    while not stopped.wait(1.0):
        if os.getppid() != parent:
            stopped.set()


if __name__ == "__main__":
    in_this_process()
    code = main()
    logging.shutdown()
    os._exit(code)  # without waiting for a training step, whose result is not needed
