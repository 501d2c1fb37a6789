"""Worker processes, each with its own copy of the base, that tune jobs side by side.

On a processor a group tunes faster on one core than on two, so two groups on two cores are the better use of
them (docs/benchmarks.md). Which group runs where changes no bit: a worker keeps nothing between two groups.
"""

from __future__ import annotations

import os
import signal
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import count as count_up
from itertools import islice
from typing import Any, TypeVar

import loky
import numpy as np
import psutil
from loky.backend import get_context
from loky.process_executor import BrokenProcessPool
from threadpoolctl import threadpool_limits

from shepherd.consent import NOTHING, Consent
from shepherd.errors import FederationError, ShepherdError
from shepherd.machine import malloc, memory
from shepherd.machine.executors.executor import Watch
from shepherd.model import base as bases
from shepherd.model.base import Base, Proof
from shepherd.settings import AdapterTable, ModelTable
from shepherd.training.tune import Job, TuningResult, Visit, tune

POLL = 0.1  # seconds between two looks at how far the workers are
AHEAD = 8  # jobs a worker that are looked at, and whose results may wait here for one before them


T = TypeVar("T")
R = TypeVar("R")


class Processes:
    """`count` processes of `threads` processor threads each, which start and load the base at first use."""

    def __init__(
        self,
        count: int,
        threads: int,
        base: Base,
        consent: Consent = NOTHING,
    ) -> None:
        self.count = count
        self._told = get_context("loky").SimpleQueue()
        self._begin = os.getpid(), self._told, threads, _Source.of(base), consent
        self._serials = count_up()
        self._end: weakref.finalize[Any, Any] | None = None

    @cached_property
    def _pool(self) -> Any:
        threads = self._begin[2]
        pool = loky.ProcessPoolExecutor(
            self.count, initializer=_begin, initargs=self._begin, env=_environment(threads)
        )
        for _ in range(self.count):  # all of them now, not one a job
            pool.submit(_ready)
        # also where nobody calls `close`, before the interpreter takes itself apart
        self._end = weakref.finalize(self, pool.shutdown, wait=True, kill_workers=True)
        return pool

    def tuned(self, jobs: Iterable[Job], watch: Watch) -> Iterator[list[TuningResult]]:
        """What each job made, in the jobs' order; at most two jobs a worker are under way.

        Of the next `AHEAD` jobs a worker the largest begins first, so that none is left alone at the end.

        Raises:
            FederationError: a worker died, as it does when memory runs out.
            ShepherdError: as `model.tune.tune`.
        """
        left = enumerate(jobs)
        waiting: dict[int, Job] = {}
        begun: dict[int, Future[list[TuningResult]]] = {}  # until their results are yielded
        numbers: dict[int, int] = {}  # of a job among all that these workers ever had -> among `jobs`
        try:
            malloc.give_back()  # of the proof and the scores: the workers need it
            # or numpy's threads would wait for the workers' cores
            with threadpool_limits(1, user_api="blas"):
                for wanted in count_up():
                    waiting.update(islice(left, AHEAD * self.count - len(waiting) - len(begun)))
                    self._begin_largest(waiting, begun, numbers)
                    if wanted not in waiting and wanted not in begun:
                        return
                    while wanted not in begun or not begun[wanted].done():
                        wait(_going(begun), timeout=POLL, return_when=FIRST_COMPLETED)
                        self._tell(numbers, watch)
                        self._begin_largest(waiting, begun, numbers)
                    self._tell(numbers, watch)
                    with _told_of_death():
                        result = begun[wanted].result()
                    yield result
                    del begun[wanted]
        finally:
            for future in begun.values():
                future.cancel()

    def each(self, work: Callable[[Base, T], R], items: Iterable[T]) -> Iterator[R]:
        """What `work` makes of each item with a worker's base, in the items' order.

        Args:
            work: a function of a module, which the worker imports.

        Raises:
            FederationError: a worker died, or `work` raised anything but a ShepherdError.
        """
        going: deque[Future[R]] = deque()
        try:
            with _told_of_death():
                for item in items:
                    going.append(self._pool.submit(_with_base, work, item))
                    if len(going) == 2 * self.count:
                        yield going.popleft().result()
                while going:
                    yield going.popleft().result()
        finally:
            for future in going:
                future.cancel()

    def _begin_largest(
        self, waiting: dict[int, Job], begun: dict[int, Future[list[TuningResult]]], numbers: dict[int, int]
    ) -> None:
        """Keep two jobs a worker under way, so that none waits for this process."""
        while waiting and len(_going(begun)) < 2 * self.count:
            number = max(waiting, key=lambda number: _tokens(waiting[number]))
            serial = next(self._serials)
            numbers[serial] = number
            with _told_of_death():
                begun[number] = self._pool.submit(_work, serial, _carried(waiting.pop(number)))

    def close(self) -> None:
        """End the processes, whatever they are doing; once or again."""
        if self._end is not None:
            self._end()

    def _tell(self, numbers: Mapping[int, int], watch: Watch) -> None:
        while not self._told.empty():
            serial, progress = self._told.get()
            if serial in numbers:  # not one of a round that was given up
                watch(numbers[serial], progress)


@contextmanager
def _told_of_death() -> Iterator[None]:
    try:
        yield
    except BrokenProcessPool as error:
        raise FederationError(
            "a worker process died, perhaps for lack of memory; resume with workers or stack_size set lower"
            " in the run folder's plan.json"
        ) from error


def processes(count: int, base: Base, consent: Consent = NOTHING) -> Processes:
    """`count` worker processes that share this process's threads, each with a copy of its base."""
    return Processes(count, max(1, memory.threads() // count), base, consent)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Source:
    """What a worker loads its base from."""

    model: ModelTable
    adapter: AdapterTable
    device: str
    proof: Proof
    """What this process found of the base, which no worker proves again."""

    @classmethod
    def of(cls, base: Base) -> _Source:
        return cls(model=base.table, adapter=base.adapter, device=str(base.device), proof=base.proof)


def _environment(threads: int) -> dict[str, str]:
    return {
        **malloc.environment(),
        "LOKY_MAX_MEMORY_LEAK_SIZE": "1e15",  # a heap that grows is no reason to load the base again
        "OMP_NUM_THREADS": str(threads),
    }


def _going(begun: Mapping[int, Future[list[TuningResult]]]) -> list[Future[list[TuningResult]]]:
    return [future for future in begun.values() if not future.done()]


def _tokens(job: Job) -> int:
    """That a job's visits take, which is about how long it will be."""
    return sum(visit.tokens for visit in job.visits)


def _carried(job: Job) -> Job:
    """The job with only the examples that its visits take."""
    return replace(job, visits=[_cut(visit) for visit in job.visits])


def _cut(visit: Visit) -> Visit:
    taken = np.concatenate(list(visit.steps))
    ends = np.cumsum([len(step) for step in visit.steps])
    steps = np.split(np.arange(len(taken)), ends[:-1])
    return replace(visit, data=visit.data.take(taken), targets=visit.targets[taken], steps=steps)


# in a worker -----------------------------------------------------------------------------------------------

_base: Base | ShepherdError
_queue: Any


def _begin(
    parent: int,
    told: Any,
    threads: int,
    source: _Source,
    consent: Consent,
) -> None:
    global _base, _queue
    for number in (signal.SIGINT, signal.SIGTERM):  # meant for the process that is asked to stop
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    malloc.keep_pages()
    memory.use_threads(threads)
    _queue = told
    try:
        _base = bases.load(
            source.model, source.adapter, device=source.device, proof=source.proof, consent=consent
        )
    except ShepherdError as error:  # said with the first job
        _base = error


def _end_with(parent: int) -> None:
    """A killed parent leaves no worker behind."""
    while os.getppid() == parent and psutil.pid_exists(parent):
        time.sleep(POLL)
    os._exit(1)


def _ready() -> None:
    """Nothing to do: a worker that answers has loaded its base."""


def _work(number: int, job: Job) -> list[TuningResult]:
    return _with_base(lambda base, job: tune(base, job, lambda progress: _queue.put((number, progress))), job)


def _with_base(work: Callable[[Base, T], R], item: T) -> R:
    if isinstance(_base, ShepherdError):
        raise _base
    try:
        return work(_base, item)
    except ShepherdError:
        raise
    except Exception as error:  # of an algorithm from outside, say, and it may not travel as it is
        raise FederationError(
            f"a worker process failed ({type(error).__name__}: {error}); see where with workers = 1 in the"
            " run folder's plan.json"
        ) from None
