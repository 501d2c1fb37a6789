"""Ray actors, each with its own copy of the base, on this machine or on a cluster: the one importer of Ray.

What travels: to an actor at its start the place of the base (never the base itself, which each node has at
the same path or fetches from the hub) and the result of its proof; in each round the broadcast, once a node;
each client's tokens once, when they are first needed; with a job what its clients remember. Back come the
clients' changes before any transform. A node so sees what its clients and their examples are, and no seed of
the server's own. Which actor tunes what changes no bit on equal processors: an actor keeps nothing between
two jobs.

An actor that dies, alone or with its node, is started again, and its jobs are repeated.
"""

from __future__ import annotations

import os
import secrets
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import partial
from importlib.util import find_spec
from itertools import count as count_up
from itertools import islice
from time import monotonic
from typing import Any, Generic, TypeVar

from shepherd.consent import NOTHING, Consent
from shepherd.core import Broadcast, Failure
from shepherd.data.tokens import Tokens
from shepherd.errors import BaseError, FederationError, SettingsError, ShepherdError
from shepherd.machine import malloc, memory
from shepherd.machine.executors.executor import Watch
from shepherd.machine.executors.schedule import Schedule
from shepherd.machine.executors.source import Source
from shepherd.model.base import Base
from shepherd.settings import RayTable
from shepherd.training.tune import Job, Progress, TuningResult, Visit, tune
from shepherd.version import install, version

POLL_S = 0.2  # between two reads of the actors' progress
LOOKAHEAD_JOBS = 8  # per actor, that are considered, and whose results may wait here for an earlier one
PROGRESS = "progress"  # the thread of an actor that answers while another one tunes

T = TypeVar("T")
R = TypeVar("R")


def require() -> None:
    """Raise SettingsError unless Ray is installed; does not import it, which takes a second."""
    if find_spec("ray") is None:
        raise SettingsError(
            f"the table machine.ray needs Ray, which is not installed; install it by {install('ray')}, or"
            " remove the table"
        )


def _ray() -> Any:
    import ray

    return ray


@dataclass(frozen=True, slots=True)
class _Call(Generic[R]):
    """Something to do in an actor, as often as needed until one has done it."""

    size: int
    clients: Sequence[str]
    send: Callable[[Any, int], Any]
    """Begin it: (actor, serial number of this try) -> reference to the result."""


@dataclass(frozen=True, slots=True)
class _Lost:
    """The result of a call whose actors died."""

    deaths: int


@dataclass(frozen=True, slots=True)
class _Ready:
    """What an actor says of itself once it has its base."""

    node: str
    version: str
    fingerprint: str


class RayActors:
    """An `Executor` of `count` Ray actors, which start and load the base at first use.

    Args:
        table: what each actor needs.
        count: actors.
        base: this process's copy of the base.
        consent: whether a cluster may be used, and whether the base's own code may run on its nodes.

    Raises:
        SettingsError: Ray is not installed.
    """

    def __init__(self, table: RayTable, count: int, base: Base, consent: Consent = NOTHING) -> None:
        require()
        self.table, self.count = table, count
        self._consent, self._fingerprint = consent, base.fingerprint
        self._source = replace(Source.of(base), device="cuda:0" if table.gpus else "cpu")
        self._crew: _Crew | None = None
        self._serials = count_up()
        self._broadcast: tuple[Broadcast, Any] | None = None
        self._data: dict[str, tuple[Tokens, Any]] = {}

    def tuned(self, jobs: Iterable[Job], watch: Watch) -> Iterator[list[TuningResult | Failure]]:
        """See `Executor`; of the next `LOOKAHEAD_JOBS` jobs per actor the largest begins first.

        Clients whose actors died `table.tries` times under their job are failures.

        Raises:
            FederationError: no actor has found a place, or none can load the base.
            ShepherdError: as `training.tune.tune`.
        """
        malloc.release_free_memory()  # memory of the proof and the scores, which actors on this machine need
        names: dict[int, Sequence[str]] = {}

        def calls() -> Iterator[_Call[list[TuningResult]]]:
            for number, job in enumerate(jobs):
                names[number] = [visit.client for visit in job.visits]
                yield _Call(
                    sum(visit.tokens for visit in job.visits), names[number], partial(self._send_job, job)
                )

        results = self._in_order(calls(), watch)
        for number, result in enumerate(results):
            clients = names.pop(number)
            if isinstance(result, _Lost):
                reason = (
                    f"the Ray actor that tuned it died {result.deaths} times, perhaps for lack of memory; set"
                    " machine.stack_size or machine.micro_batch_tokens lower, or see Ray's logs"
                )
                yield [Failure(client=client, reason=reason) for client in clients]
            else:
                yield list(result)

    def each(self, work: Callable[[Base, T], R], items: Iterable[T]) -> Iterator[R]:
        """See `Executor`; an item is sent with each call.

        Raises:
            FederationError: as `tuned`; or the actors died again and again under one item.
        """

        def sent(item: T, actor: Any, serial: int) -> Any:
            return actor.each.remote(work, item)

        for result in self._in_order((_Call(0, (), partial(sent, item)) for item in items), _unseen):
            if isinstance(result, _Lost):
                raise FederationError(
                    f"the Ray actors that did one piece of work died {result.deaths} times, perhaps for lack"
                    " of memory; see Ray's logs, and resume"
                )
            yield result

    def close(self) -> None:
        """End the actors, and Ray too if it was begun here; may be called again."""
        if self._crew is not None:
            self._crew.close()
            self._crew = None

    def _send_job(self, job: Job, actor: Any, serial: int) -> Any:
        data = [self._stored(visit) for visit in job.visits]
        visits = [_without(visit, "data", "trained_tokens") for visit in job.visits]
        sent = self._stored_broadcast(job.broadcast)
        return actor.tune.remote(serial, _without(job, "broadcast", "visits"), visits, sent, *data)

    def _stored(self, visit: Visit) -> Any:
        """A client's tokens in Ray's store, where they are put once; see `_same`."""
        kept = self._data.get(visit.client)
        if kept is None or not _same(kept[0], visit.data):
            kept = visit.data, _ray().put((visit.data, visit.trained_tokens))
            self._data[visit.client] = kept
        return kept[1]

    def _stored_broadcast(self, broadcast: Broadcast) -> Any:
        if self._broadcast is None or self._broadcast[0] is not broadcast:
            self._broadcast = broadcast, _ray().put(broadcast)
        return self._broadcast[1]

    def _begun(self) -> _Crew:
        if self._crew is None:
            self._data, self._broadcast = {}, None
            begun = _begin_ray(self.table, self.count, self._consent.ray_address)
            self._crew = _Crew(
                table=self.table,
                expected=_Ready(node="", version=version(), fingerprint=self._fingerprint),
                begin=partial(_begin_actor, self.table, self._source, self._consent),
                end=begun,
            )
            for _ in range(self.count):
                self._crew.start()
        return self._crew

    def _in_order(self, calls: Iterable[_Call[R]], watch: Watch) -> Iterator[R | _Lost]:
        """Yield the result of each call, in order, with a bounded number of them under way."""
        crew, left = self._begun(), enumerate(calls)
        ray = _ray()  # not imported before it begins
        schedule = Schedule(tries=self.table.tries)
        for worker in crew.ready:
            schedule.join(worker)
        open_calls: dict[int, _Call[R]] = {}
        going: dict[Any, tuple[int, int]] = {}  # reference -> worker and job, in the order of their begin
        numbers: dict[int, int] = {}  # serial number of a try among all that there were -> job
        done: dict[int, R | _Lost] = {}
        try:
            for expected in count_up():
                for number, call in islice(left, LOOKAHEAD_JOBS * self.count - len(open_calls) - len(done)):
                    open_calls[number] = call
                    schedule.add(number, call.size)
                if expected not in open_calls and expected not in done:
                    return
                while True:
                    while (given := schedule.give()) is not None:
                        serial = next(self._serials)
                        numbers[serial] = given[1]
                        going[open_calls[given[1]].send(crew.handles[given[0]], serial)] = given
                    if expected in done:
                        break
                    for number, result in self._came(ray, crew, schedule, going):
                        del open_calls[number]
                        done[number] = result
                    for serial, progress in crew.progress(ray):
                        if serial in numbers:  # not one of a round that was given up
                            watch(numbers[serial], progress)
                yield done.pop(expected)
        finally:
            for reference in going if ray.is_initialized() else ():  # a call would start another Ray
                ray.cancel(reference)

    def _came(
        self, ray: Any, crew: _Crew, schedule: Schedule, going: dict[Any, tuple[int, int]]
    ) -> Iterator[tuple[int, Any]]:
        """Wait a moment; yield what has come since, and the jobs that are given up."""
        references = [*going, *crew.starting]
        ray.wait(references, timeout=POLL_S)
        ready, _ = ray.wait(references, num_returns=len(references), timeout=0)
        for reference in ready:  # of each worker in the order of its jobs
            if reference in crew.starting:
                joined = crew.admit(ray, reference)
                if joined is not None:
                    schedule.join(joined)
            elif reference in going:
                worker, number = going[reference]
                try:
                    value = ray.get(reference)
                except _losses(ray):
                    for other in [other for other, (whose, _) in going.items() if whose == worker]:
                        del going[other]
                    given_up = schedule.leave(worker)
                    crew.lose(ray, worker)
                    if given_up is not None:
                        yield given_up, _Lost(self.table.tries)
                    continue
                except ray.exceptions.RayError as error:
                    raise _fault(error) from error
                del going[reference]
                schedule.finish(worker, number)
                if isinstance(value, ShepherdError):
                    raise value
                yield number, value
        crew.require_some()


@dataclass(slots=True, kw_only=True)
class _Crew:
    """The actors: those that are ready, and those that wait for a place or load their base."""

    table: RayTable
    expected: _Ready
    begin: Callable[[], Any]
    end: Callable[[], None]
    handles: dict[int, Any] = field(default_factory=dict)
    starting: dict[Any, int] = field(default_factory=dict)
    """Reference to what an actor says of itself -> its number."""
    asked: dict[int, Any] = field(default_factory=dict)
    """Actor -> reference to its progress."""
    since: float = field(default_factory=monotonic)
    """Since when no actor is ready, unless one is."""
    failed_starts: int = 0
    """Actors that died before they were ready, since the last that became so."""
    numbers: Iterator[int] = field(default_factory=count_up)

    @property
    def ready(self) -> list[int]:
        """The actors that have their base."""
        return [worker for worker in self.handles if worker not in self.starting.values()]

    def start(self) -> None:
        """Begin one more actor."""
        worker = next(self.numbers)
        self.handles[worker] = self.begin()
        self.starting[self.handles[worker].ready.remote()] = worker

    def admit(self, ray: Any, reference: Any) -> int | None:
        """An actor is ready; returns its number, or None if it died instead.

        Raises:
            BaseError: it has another base, or cannot load it.
            FederationError: it has another version of this package; or actors die again and again.
        """
        worker = self.starting[reference]
        try:
            said = ray.get(reference)
        except _losses(ray) as error:
            self.failed_starts += 1
            if self.failed_starts >= self.table.tries * max(1, len(self.handles)):
                raise FederationError(
                    "Ray's actors die while they load the base, perhaps for lack of memory; set fewer"
                    " machine.ray.actors a node (a larger machine.ray.cpus), or see Ray's logs"
                ) from error
            self.lose(ray, worker)
            return None
        except ray.exceptions.RayError as error:
            raise _fault(error) from error
        if isinstance(said, ShepherdError):
            raise said
        if said.version != self.expected.version:
            raise FederationError(
                f"the Ray node {said.node} has version {said.version} of shepherd-fit and this machine"
                f" {self.expected.version}; install one version on all nodes"
            )
        if said.fingerprint != self.expected.fingerprint:
            raise BaseError(
                f"the Ray node {said.node} has another base under the same name (fingerprint"
                f" {said.fingerprint[:12]} instead of {self.expected.fingerprint[:12]}); copy this"
                " machine's there"
            )
        del self.starting[reference]
        self.failed_starts = 0
        return worker

    def lose(self, ray: Any, worker: int) -> None:
        """An actor died, or cannot be reached any more: end it for good, and begin another."""
        ray.kill(self.handles.pop(worker))
        self.starting = {reference: number for reference, number in self.starting.items() if number != worker}
        self.asked.pop(worker, None)
        if not self.ready:
            self.since = monotonic()
        self.start()

    def progress(self, ray: Any) -> Iterator[tuple[int, Progress]]:
        """The latest progress of the actors that have answered; asks them again."""
        for worker in self.ready:
            reference = self.asked.pop(worker, None)
            if reference is not None and not ray.wait([reference], timeout=0)[0]:
                self.asked[worker] = reference
                continue
            if reference is not None:
                try:
                    said = ray.get(reference)
                except ray.exceptions.RayError:  # its job will tell
                    continue
                if said is not None:
                    yield said
            self.asked[worker] = self.handles[worker].progress.options(concurrency_group=PROGRESS).remote()

    def require_some(self) -> None:
        """Raise FederationError if no actor has been ready for too long."""
        if not self.ready and monotonic() - self.since > self.table.start_s:
            needs = f"{self.table.cpus} CPU" + f" and {self.table.gpus:g} GPU" * (self.table.gpus > 0)
            raise FederationError(
                f"no Ray actor was ready within {self.table.start_s:g} s: each needs {needs} on one node and"
                " loads the base there; see `ray status`, lower machine.ray.cpus or machine.ray.gpus, or"
                " raise machine.ray.start_s"
            )

    def close(self) -> None:
        """End all actors, whatever they are doing."""
        ray = _ray()
        if ray.is_initialized():
            for handle in self.handles.values():
                ray.kill(handle)
        self.handles, self.starting, self.asked = {}, {}, {}
        self.end()


def _begin_ray(table: RayTable, count: int, address: str | None) -> Callable[[], None]:
    """Connect to a cluster, or begin a Ray of one's own; returns the function that ends what was begun.

    A Ray to which this process is connected already is used, and left as it is.

    Raises:
        FederationError: there is no cluster at this address, or it does not answer.
    """
    if address is None:
        # Ray reads most of them at its import, and the token once
        late = {"RAY_AUTH_TOKEN"} if "ray" in sys.modules else _OWN.keys()
        os.environ.update({name: _OWN[name]() for name in late if name not in os.environ})
    ray = _ray()
    if ray.is_initialized():
        return _nothing
    where = (
        {"address": "local", "num_cpus": count * table.cpus, "include_dashboard": False}
        if address is None
        else {"address": address}
    )
    handler = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(**where, configure_logging=False, log_to_driver=False)
    except (ConnectionError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
        whose = "a Ray of one's own cannot be started" if address is None else f"there is no Ray at {address}"
        raise FederationError(
            f"{whose} ({_first_line(error)}); see `ray status` on this machine, which must be a node of the"
            " cluster, and its logs in /tmp/ray"
        ) from error
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, handler)  # Ray sets its own, and a run stops by this one
    return ray.shutdown  # type: ignore[no-any-return]


_OWN: dict[str, Callable[[], str]] = {
    "RAY_USAGE_STATS_ENABLED": lambda: "0",
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": lambda: "0",  # no cluster: listen on the loopback address alone
    "RAY_AUTH_MODE": lambda: "token",
    # else Ray writes one into the home folder, for every Ray that this user starts
    "RAY_AUTH_TOKEN": partial(secrets.token_hex, 32),
}
"""Environment of a Ray of one's own, where the person has set nothing else."""


def _begin_actor(table: RayTable, source: Source, consent: Consent) -> Any:
    made = _ray().remote(
        num_cpus=table.cpus,
        num_gpus=table.gpus,
        max_restarts=0,
        concurrency_groups={PROGRESS: 1},
        runtime_env={"env_vars": {**malloc.environment(), "OMP_NUM_THREADS": str(table.cpus)}},
    )(_Actor)
    return made.remote(source, table.cpus, consent)


def _losses(ray: Any) -> tuple[type[Exception], ...]:
    """What Ray raises if an actor, its node, or a result on that node is gone."""
    errors = ray.exceptions
    return (
        errors.RayActorError,
        errors.WorkerCrashedError,
        errors.NodeDiedError,
        errors.ObjectLostError,
        errors.OutOfMemoryError,
    )


def _fault(error: Exception) -> FederationError:
    return FederationError(f"Ray failed ({_first_line(error)}); see `ray status` and its logs in /tmp/ray")


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200].rstrip(":.")


def _without(value: Any, *names: str) -> dict[str, Any]:
    """The fields of a dataclass, without some."""
    return {each.name: getattr(value, each.name) for each in fields(value) if each.name not in names}


def _same(kept: Tokens, data: Tokens) -> bool:
    """Whether these are the same tokens: one value, or views of the same part of one memory map."""
    places = [
        (tokens.ids.ctypes.data, tokens.loss_mask.ctypes.data, len(tokens.ids), len(tokens))
        for tokens in (kept, data)
    ]
    return kept is data or places[0] == places[1]


def _unseen(number: int, progress: Progress) -> None:
    """Show nothing."""


def _nothing() -> None:
    """End nothing."""


# in an actor -----------------------------------------------------------------------------------------------


class _Actor:
    """One copy of the base, and what is done with it; faults are returned, since Ray would wrap them."""

    def __init__(self, source: Source, threads: int, consent: Consent) -> None:
        malloc.keep_pages()
        self.threads = threads
        memory.use_threads(threads)
        self.latest: tuple[int, Progress] | None = None
        self.node = str(_ray().util.get_node_ip_address())
        self.base: Base | ShepherdError
        try:
            self.base = source.load(consent)
        except ShepherdError as error:
            self.base = type(error)(f"on the Ray node {self.node}: {error}")

    def ready(self) -> _Ready | ShepherdError:
        """What this actor is, or why it has no base."""
        if isinstance(self.base, ShepherdError):
            return self.base
        return _Ready(self.node, version(), self.base.fingerprint)

    def tune(
        self,
        serial: int,
        rest: dict[str, Any],
        visits: Sequence[dict[str, Any]],
        broadcast: Broadcast,
        *data: Any,
    ) -> list[TuningResult] | ShepherdError:
        """Tune a job, which arrives in parts: its visits' tokens and its broadcast from Ray's store."""
        job = Job(
            broadcast=broadcast,
            visits=[
                Visit(**visit, data=tokens, trained_tokens=trained)
                for visit, (tokens, trained) in zip(visits, data, strict=True)
            ],
            **rest,
        )

        def told(progress: Progress) -> None:
            self.latest = serial, progress

        return self.each(lambda base, job: tune(base, job, told), job)

    def each(self, work: Callable[[Base, T], R], item: T) -> R | ShepherdError:
        """Do some work with this actor's base."""
        assert isinstance(self.base, Base)
        memory.use_threads(self.threads)  # of this thread, which is not the one that began
        try:
            return work(self.base, item)
        except ShepherdError as error:
            return error
        except Exception as error:  # for example of a plug-in, and it may not be picklable
            return FederationError(
                f"a Ray actor on {self.node} failed ({type(error).__name__}: {error}); run without the table"
                " machine.ray to see where"
            )

    def progress(self) -> tuple[int, Progress] | None:
        """Serial number and progress of the latest job."""
        return self.latest
