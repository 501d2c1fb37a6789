"""Executor: where jobs are tuned."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Protocol, TypeVar

from shepherd.core import Failure
from shepherd.model.base import Base
from shepherd.training.tune import Job, Progress, TuningResult

Watch = Callable[[int, Progress], None]
"""Called with the number of a job, counted from 0, and its progress."""
T = TypeVar("T")
R = TypeVar("R")


class Executor(Protocol):
    """Runs tuning jobs; which executor is used changes no bit of their results."""

    @property
    def count(self) -> int:
        """Jobs that are tuned at the same time."""

    def tuned(self, jobs: Iterable[Job], watch: Watch) -> Iterator[Sequence[TuningResult | Failure]]:
        """Yield the results of each job, in order; lazily, with a bounded number of jobs under way.

        A client whose work is lost again and again, such as with the machines that it is sent to, fails, and
        the others go on.

        Raises:
            FederationError: the executor failed, for example a worker that ran out of memory.
            ShepherdError: as `training.tune.tune`.
        """

    def each(self, work: Callable[[Base, T], R], items: Iterable[T]) -> Iterator[R]:
        """Yield `work(base, item)` for each item, in order; `work` is a function of a module."""

    def close(self) -> None:
        """Stop, whatever is under way; may be called again."""
