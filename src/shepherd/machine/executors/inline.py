"""Tune in this process, one job after another."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TypeVar

from shepherd.machine.executors.executor import Watch
from shepherd.model.base import Base
from shepherd.training import tune
from shepherd.training.tune import Job, TuningResult

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class Inline:
    """An `Executor` over the base that this process has loaded."""

    base: Base
    count: int = 1

    def tuned(self, jobs: Iterable[Job], watch: Watch) -> Iterator[list[TuningResult]]:
        """See `Executor`; a job begins when its results are asked for."""
        for number, job in enumerate(jobs):
            yield tune.tune(self.base, job, lambda progress, number=number: watch(number, progress))  # type: ignore[misc]

    def each(self, work: Callable[[Base, T], R], items: Iterable[T]) -> Iterator[R]:
        """See `Executor`."""
        return (work(self.base, item) for item in items)

    def close(self) -> None:
        """Do nothing: there is no process to stop."""
