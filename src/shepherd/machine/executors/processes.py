"""Worker processes, each with its own copy of the base, that tune jobs at the same time.

On a processor two stacks on one core each are faster than one stack after the other on two cores
(docs/benchmarks.md). Which job runs where changes no bit: a worker keeps nothing between two jobs.
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
from dataclasses import replace
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
from shepherd.machine.executors.source import Source
from shepherd.model.base import Base
from shepherd.training.tune import Job, TuningResult, Visit, tune

POLL_S = 0.1  # between two reads of the workers' progress
LOOKAHEAD_JOBS = 8  # per worker, that are considered, and whose results may wait here for an earlier one


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
        self._progress = get_context("loky").SimpleQueue()
        self._begin = os.getpid(), self._progress, threads, Source.of(base), consent
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
        # also if `close` is never called, before the interpreter shuts down
        self._end = weakref.finalize(self, pool.shutdown, wait=True, kill_workers=True)
        return pool

    def tuned(self, jobs: Iterable[Job], watch: Watch) -> Iterator[list[TuningResult]]:
        """Yield the results of each job, in order; at most two jobs per worker are under way.

        Of the next `LOOKAHEAD_JOBS` jobs per worker the largest begins first, so that it is not the last one.

        Raises:
            FederationError: a worker died, for example because memory ran out.
            ShepherdError: as `training.tune.tune`.
        """
        left = enumerate(jobs)
        waiting: dict[int, Job] = {}
        begun: dict[int, Future[list[TuningResult]]] = {}  # until their results are yielded
        numbers: dict[int, int] = {}  # of a job among all that these workers ever had -> among `jobs`
        try:
            malloc.release_free_memory()  # memory of the proof and the scores, which the workers need
            # or numpy's threads would wait for the workers' cores
            with threadpool_limits(1, user_api="blas"):
                for expected in count_up():
                    waiting.update(islice(left, LOOKAHEAD_JOBS * self.count - len(waiting) - len(begun)))
                    self._begin_largest(waiting, begun, numbers)
                    if expected not in waiting and expected not in begun:
                        return
                    while expected not in begun or not begun[expected].done():
                        wait(_unfinished(begun), timeout=POLL_S, return_when=FIRST_COMPLETED)
                        self._report(numbers, watch)
                        self._begin_largest(waiting, begun, numbers)
                    self._report(numbers, watch)
                    with self._raising_worker_death():
                        result = begun[expected].result()
                    yield result
                    del begun[expected]
        finally:
            for future in begun.values():
                future.cancel()

    def each(self, work: Callable[[Base, T], R], items: Iterable[T]) -> Iterator[R]:
        """Yield `work(base, item)` for each item, in order, with a worker's base.

        Args:
            work: a function of a module, which the worker imports.

        Raises:
            FederationError: a worker died, or `work` raised anything but a ShepherdError.
        """
        going: deque[Future[R]] = deque()
        try:
            with self._raising_worker_death():
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
        while waiting and len(_unfinished(begun)) < 2 * self.count:
            number = max(waiting, key=lambda number: _tokens(waiting[number]))
            serial = next(self._serials)
            numbers[serial] = number
            with self._raising_worker_death():
                begun[number] = self._pool.submit(_work, serial, _with_used_examples(waiting.pop(number)))

    def close(self) -> None:
        """End the processes, whatever they are doing; may be called again."""
        if self._end is not None:
            self._end()

    @contextmanager
    def _raising_worker_death(self) -> Iterator[None]:
        try:
            yield
        except BrokenProcessPool as error:
            self.close()
            self.__dict__.pop("_pool", None)  # a caller that goes on gets new workers
            raise FederationError(
                "a worker process died, perhaps for lack of memory; resume with workers or stack_size set"
                " lower in the run folder's plan.json"
            ) from error

    def _report(self, numbers: Mapping[int, int], watch: Watch) -> None:
        while not self._progress.empty():
            serial, progress = self._progress.get()
            if serial in numbers:  # not one of a round that was given up
                watch(numbers[serial], progress)


def processes(count: int, base: Base, consent: Consent = NOTHING) -> Processes:
    """`count` worker processes that share this process's threads, each with a copy of its base."""
    return Processes(count, max(1, memory.threads() // count), base, consent)


def _environment(threads: int) -> dict[str, str]:
    return {
        **malloc.environment(),
        "LOKY_MAX_MEMORY_LEAK_SIZE": "1e15",  # a heap that grows is no reason to load the base again
        "OMP_NUM_THREADS": str(threads),
    }


def _unfinished(begun: Mapping[int, Future[list[TuningResult]]]) -> list[Future[list[TuningResult]]]:
    return [future for future in begun.values() if not future.done()]


def _tokens(job: Job) -> int:
    """Tokens of a job's visits, an estimate of its duration."""
    return sum(visit.tokens for visit in job.visits)


def _with_used_examples(job: Job) -> Job:
    """The job with only those examples that its visits use."""
    return replace(job, visits=[_sliced(visit) for visit in job.visits])


def _sliced(visit: Visit) -> Visit:
    """The visit with only the examples that it uses, in the order in which it uses them."""
    used = np.concatenate(list(visit.batches))
    ends = np.cumsum([len(batch) for batch in visit.batches])
    return replace(
        visit,
        data=visit.data.take(used),
        trained_tokens=visit.trained_tokens[used],
        batches=np.split(np.arange(len(used)), ends[:-1]),
    )


# in a worker -----------------------------------------------------------------------------------------------

_base: Base | ShepherdError
_queue: Any


def _begin(
    parent: int,
    progress: Any,
    threads: int,
    source: Source,
    consent: Consent,
) -> None:
    global _base, _queue
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):  # meant for the process that is asked to stop
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    threading.Thread(target=_exit_after_parent, args=(parent,), daemon=True).start()
    malloc.keep_pages()
    memory.use_threads(threads)
    _queue = progress
    try:
        _base = source.load(consent)
    except ShepherdError as error:  # raised with the first job
        _base = error


def _exit_after_parent(parent: int) -> None:
    """Exit once the parent process has ended, so that a killed parent leaves no worker behind."""
    while os.getppid() == parent and psutil.pid_exists(parent):
        time.sleep(POLL_S)
    os._exit(1)


def _ready() -> None:
    """Do nothing; a worker that answers has loaded its base."""


def _work(number: int, job: Job) -> list[TuningResult]:
    return _with_base(lambda base, job: tune(base, job, lambda progress: _queue.put((number, progress))), job)


def _with_base(work: Callable[[Base, T], R], item: T) -> R:
    if isinstance(_base, ShepherdError):
        raise _base
    try:
        return work(_base, item)
    except ShepherdError:
        raise
    except Exception as error:  # for example of a plug-in, and it may not be picklable
        raise FederationError(
            f"a worker process failed ({type(error).__name__}: {error}); set workers = 1 in the run folder's"
            " plan.json and resume to see where"
        ) from None
