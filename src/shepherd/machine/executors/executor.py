"""What a place to tune in offers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Protocol, TypeVar

from shepherd.model.base import Base
from shepherd.training.tune import Job, Progress, TuningResult

Watch = Callable[[int, Progress], None]
"""Hears which job, counted from 0, and how far it is."""
T = TypeVar("T")
R = TypeVar("R")


class Executor(Protocol):
    """A place where jobs are tuned; which one it is changes no bit of what they make."""

    @property
    def count(self) -> int:
        """Jobs that are tuned side by side."""

    def tuned(self, jobs: Iterable[Job], watch: Watch) -> Iterator[list[TuningResult]]:
        """What each job made, in the jobs' order; lazy, and with a bounded number of jobs under way.

        Raises:
            FederationError: the place failed, as a worker does when memory runs out.
            ShepherdError: as `model.tune.tune`.
        """

    def each(self, work: Callable[[Base, T], R], items: Iterable[T]) -> Iterator[R]:
        """What `work`, a function of a module, makes of each item with a loaded base, in the items' order."""

    def close(self) -> None:
        """End it, whatever it is doing; once or again."""
