"""A site's trainer: a process of its own that holds the base and the data and answers requests.

    python -m shepherd.site.trainer site.toml --name site-1 --home KIT/shepherd

It knows no federation engine: bytes of `federation.wire` come in on a Unix socket, and bytes go out. The
base stays loaded through rounds and runs. Whatever goes wrong with a request becomes its reply.
"""

from __future__ import annotations

import argparse
import logging
import logging.handlers
import os
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from time import monotonic

import numpy as np
from numpy.typing import NDArray

from shepherd import plugins, prepare
from shepherd.core import Broadcast, Failure, Update
from shepherd.errors import DataError, ShepherdError
from shepherd.evaluate import loss
from shepherd.federation import fields, local, wire
from shepherd.federation.simulation import Simulation
from shepherd.federation.wire import Joined, Request, Scores
from shepherd.folder import mending
from shepherd.model import score, tune
from shepherd.model.base import Base
from shepherd.prepare import Prepared
from shepherd.settings import RunSettings
from shepherd.site import arrival, audit, bases, faults, policy
from shepherd.site.audit import Left
from shepherd.site.holding import Holding
from shepherd.site.policy import Refusal
from shepherd.site.settings import SiteSettings, own, read
from shepherd.site.store import Kept, Store
from shepherd.site.task import Task, waited

LOG = "trainer.log"

log = logging.getLogger("shepherd.site.trainer")  # also where it is run as __main__


class Trainer:
    """Answers the requests to one site, one at a time."""

    def __init__(self, settings: SiteSettings, name: str, home: Path) -> None:
        self.settings, self.name, self.home = settings, name, home
        with mending(home):
            home.mkdir(parents=True, exist_ok=True)
            home.chmod(0o700)
        self.store, self.holding = Store(home), Holding(home, name)
        self._allowed = bases.allowed(settings.bases)
        self._worker = ThreadPoolExecutor(1)  # one thread, and so one tuning at a time
        self._lock = threading.Lock()
        self._tasks: dict[str, Task] = {}  # of each run, the last one

    def handle(self, message: bytes) -> bytes:
        """The reply to a request; never raises."""
        received = monotonic()
        try:
            request = wire.decode_request(message)
        except Exception as error:
            log.error("a message was refused: %s", faults.logged(error))
            return self._failure(faults.told(error))
        try:
            reply = self._reply(request, received, len(message))
            self._record(audit.answered(request, _now(), _left(reply)))
            log.info("%s answered in %.1f s: %d bytes", _named(request), monotonic() - received, len(reply))
            return reply
        except arrival.Refused as error:
            return self._refused(request, error.refusal)
        except Exception as error:
            return self._failed(request, error)

    def stop(self) -> None:
        """Give up what is being worked on."""
        with self._lock:
            for task in self._tasks.values():
                task.cancelled = True

    # what is decided at once ------------------------------------------------------------------------------

    def _reply(self, request: Request, received: float, size: int) -> bytes:
        arrival.require_version(request, self.name)
        arrival.require_clock(request, size)
        arrival.require_id(request, self.name)
        self._require_allowed(request)
        kept = self._kept_reply(request)
        if kept is not None:
            return kept
        if request.kind == "join" and (examples := self._examples_held(request)):
            return wire.encode_reply(self._joined(examples))
        task = self._submitted(request, received + request.deadline)
        return waited(task, received + request.deadline)

    def _require_allowed(
        self, request: Request, examples: int | None = None, position: int = 0, scored: int | None = None
    ) -> None:
        """By the rules about what is asked; before the data are looked at, by those that need no look."""
        arrival.require_none(
            policy.refusal(
                self.settings.policy,
                request,
                site=self.name,
                bases=self._allowed,
                examples=examples,
                position=position,
                scored=scored,
            )
        )

    def _require_allowed_now(self, request: Request) -> None:
        now = _now()
        granted = self._granted(request, now)
        arrival.require_none(
            policy.refusal_now(
                self.settings.policy, request, site=self.name, granted_this_month=granted, now=now
            )
        )

    def _granted(self, request: Request, now: datetime) -> int:
        this = (request.run, request.round, request.id)
        return audit.granted(self.home / audit.FILE, audit.month_of(now), kind=request.kind, besides=this)

    def _kept_reply(self, request: Request) -> bytes | None:
        """The reply that this question got before.

        Raises:
            Refused: a round that was answered already, or one before it, is asked with another question.
        """
        if request.kind != "train":
            return None
        kept = self.store.answered(request.run, request.id)
        last = self.store.last(request.run)
        if kept is None and last is not None and request.round <= last.round:
            raise arrival.Refused(
                "replay",
                f"{self.name} answered round {last.round + 1} of this run and is asked for round"
                f" {request.round + 1} with another question; where the server has lost rounds, use `shepherd"
                " silos anew`",
            )
        return kept

    def _examples_held(self, request: Request) -> int:
        """How many examples there are, if base and data are loaded: then nobody's work is disturbed."""
        if self.holding.digest != request.base:
            return 0
        prepared = self.holding.ready(self._own(request), request.base)
        return len(prepared.clients[self.name]) if prepared else 0

    def _submitted(self, request: Request, until: float) -> Task:
        with self._lock:
            task = self._tasks.get(request.run)
            if task is not None and task.request.id == request.id and not task.cancelled:
                task.until = max(task.until, until)
                return task
            self._require_allowed_now(request)  # before anybody's work is given up for it
            if task is not None:
                arrival.require_newer(request, task.request, self.name)
                task.cancelled = True
            task = self._tasks[request.run] = Task(request, until)  # another run's waits for its turn
            task.future = self._worker.submit(self._work, task)
            return task

    # the work, in its own thread --------------------------------------------------------------------------

    def _work(self, task: Task) -> bytes:
        try:
            task.require_wanted()
            kept = self._kept_reply(task.request)
            return kept if kept is not None else self._worked(task)
        finally:
            with self._lock:
                if self._tasks.get(task.request.run) is task:
                    del self._tasks[task.request.run]

    def _worked(self, task: Task) -> bytes:
        request = task.request
        settings = self._own(request)
        prepared = self.holding.data(settings, request.base)
        before = self.store.before(request.run, request.round)
        examples = len(prepared.clients[self.name])
        places = _scored(settings, prepared) if request.kind == "score" else None
        scored = None if places is None else len(places)
        self._require_allowed(request, examples, before.position if before else 0, scored)
        self._require_allowed_now(request)  # it may have waited
        self._record(audit.granted_to(request, _now()))
        task.require_wanted()
        base = self.holding.base(settings, request.base)
        prepare.require_readable(prepared, base)
        task.require_wanted()
        if request.broadcast is None:
            return wire.encode_reply(self._joined(examples))
        arrival.require_fit(request, request.broadcast, base)
        if places is not None:
            return wire.encode_reply(self._scores(settings, prepared, places, base, request.broadcast))
        return self._trained(task, settings, prepared, base, before)

    def _own(self, request: Request) -> RunSettings:
        return own(self.settings, request.settings, bases.find(self.settings.bases, request.base))

    def _joined(self, examples: int) -> Joined:
        fewest = self.settings.policy.min_cohort
        return Joined(client=self.name, examples=examples, min_cohort=fewest, version=wire.version())

    def _trained(
        self, task: Task, settings: RunSettings, prepared: Prepared, base: Base, before: Kept | None
    ) -> bytes:
        request, name = task.request, self.name
        assert request.broadcast is not None
        simulation = Simulation(
            base=base,
            datasets={name: prepared.clients[name]},
            algorithm=plugins.algorithm(settings.algorithm),
            transform=plugins.transform(settings.transforms),
            tuning=settings.tuning,
            federation=settings.federation,
            seed=settings.seed,
            cohort_size=1,
            positions={name: before.position} if before else {},
            memories={name: before.memory} if before else {},
            watch=lambda progress: task.require_wanted(),
        )
        (answer,) = simulation.run(request.broadcast, [name])
        simulation.commit()
        if isinstance(answer, Failure):
            raise DataError(answer.reason)
        reply = wire.encode_reply(
            replace(answer, metrics=policy.leaving(self.settings.policy, answer.metrics))
        )
        task.commit()
        kept = Kept(
            round=request.round,
            id=request.id,
            reply=reply,
            position=simulation.positions[name],
            memory=simulation.memories[name],
        )
        self.store.save(request.run, kept)
        return reply

    def _scores(
        self,
        settings: RunSettings,
        prepared: Prepared,
        places: NDArray[np.int64],
        base: Base,
        broadcast: Broadcast,
    ) -> Scores:
        categories = prepare.categories(prepared)
        data = prepared.heldout.take(places)
        micro_batch = tune.micro_batch_tokens(settings.tuning, base)
        sums = score.losses(base, [broadcast.adapter], data, micro_batch=micro_batch)[0]
        counts = tune.predictions(data)
        names = np.array([fields.sentence(categories[i])[: fields.MOST_NAME] for i in places])
        by_name = {
            str(name): (float(sums[names == name].sum()), int(counts[names == name].sum()))
            for name in np.unique(names)
        }
        return Scores(client=self.name, round=broadcast.round, categories=by_name)

    # what is said -----------------------------------------------------------------------------------------

    def _refused(self, request: Request, refusal: Refusal) -> bytes:
        log.warning("%s refused: %s", _named(request), refusal.sentence)
        self._noted(lambda: audit.refused(request, _now(), refusal))
        return self._failure(refusal.sentence)

    def _failed(self, request: Request, error: Exception) -> bytes:
        log.error("%s failed: %s", _named(request), faults.logged(error))
        self._noted(lambda: audit.failed(request, _now(), error))
        return self._failure(faults.told(error))

    def _failure(self, reason: str) -> bytes:
        return wire.encode_reply(Failure(client=self.name, reason=reason))

    def _record(self, event: audit.Event) -> None:
        audit.record(self.home / audit.FILE, event)

    def _noted(self, make: Callable[[], audit.Event]) -> None:
        """Of what is not answered anyway: a log that cannot be written changes nothing."""
        try:
            self._record(make())
        except ShepherdError as error:
            log.error("%s", error)


def _scored(settings: RunSettings, prepared: Prepared) -> NDArray[np.int64]:
    """Which of the held-out examples a score is over."""
    return loss.spread(prepare.categories(prepared), settings.evaluation.examples)


def _now() -> datetime:
    return datetime.now().astimezone()


def _named(request: Request) -> str:
    return f"run {request.run}, round {request.round + 1}, {request.kind}:"


def _left(reply: bytes) -> Left:
    """What a reply lets out, for the audit log."""
    match wire.decode_reply(reply):
        case Update() as update:
            tensors = len(update.delta) + len(update.extra)
            return Left(bytes=len(reply), tensors=tensors, metrics=tuple(sorted(update.metrics)))
        case Scores():
            return Left(bytes=len(reply), metrics=("heldout",))
        case _:
            return Left(bytes=len(reply))


# the process -----------------------------------------------------------------------------------------------


def main(words: Sequence[str] | None = None) -> int:
    """Serve until SIGTERM, or until whoever started this is gone; 2 where it cannot begin."""
    given = _parser().parse_args(words)
    stopped = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopped.set())
    threading.Thread(target=_end_with, args=(os.getppid(), stopped), daemon=True).start()
    try:
        trainer = Trainer(read(given.site), given.name, given.home)
        _log_to(given.home / LOG)
        log.info("%s is read at the start alone; restart the site after a change to it", given.site)
        local.serve(local.place(given.home), trainer.handle, lambda: log.info("ready"), stopped)
    except ShepherdError as error:
        print(error, file=sys.stderr)
        return 2
    trainer.stop()
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m shepherd.site.trainer")
    parser.add_argument("site", type=Path, metavar="SITE.toml")
    parser.add_argument("--name", required=True, help="the site's name in the federation")
    parser.add_argument(
        "--home", type=Path, required=True, help="where the site keeps its state and its logs"
    )
    return parser


def _log_to(path: Path) -> None:
    """Our own lines alone: a library's might quote what it was given."""
    with mending(path.parent):
        handler = logging.handlers.RotatingFileHandler(path, maxBytes=2**20, backupCount=3, encoding="utf8")
        path.chmod(0o600)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    ours = logging.getLogger("shepherd")
    ours.setLevel(logging.INFO)
    ours.addHandler(handler)


def _end_with(parent: int, stopped: threading.Event) -> None:
    """A killed supervisor leaves no trainer behind."""
    while not stopped.wait(1.0):
        if os.getppid() != parent:
            stopped.set()


if __name__ == "__main__":
    code = main()
    logging.shutdown()
    os._exit(code)  # a step that is under way may take long, and nothing of it is wanted
