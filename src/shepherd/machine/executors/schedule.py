"""Which job goes to which worker, and what becomes of the jobs of a worker that dies.

Bookkeeping over numbers alone: it starts nothing, sends nothing and knows no clock.
"""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import dataclass, field

PREFETCH = 2
"""Jobs that a worker holds at most: the one that it does and the one after it, which is on its way."""


@dataclass(slots=True, kw_only=True)
class Schedule:
    """The jobs of one list, by number, and the workers that do them.

    The largest job goes first, so that it is not the last one; one whose worker died goes before all others.
    """

    tries: int
    """How often a job's worker may die under it before it is given up."""
    waiting: dict[int, int] = field(default_factory=dict)
    """Job -> its size."""
    held: dict[int, deque[int]] = field(default_factory=dict)
    """Worker -> its jobs, in the order in which it does them."""
    deaths: Counter[int] = field(default_factory=Counter)
    """Job -> workers that died under it."""
    sizes: dict[int, int] = field(default_factory=dict)
    """Sizes of the jobs that workers hold."""

    def add(self, job: int, size: int) -> None:
        """Have a job wait for a worker."""
        self.waiting[job] = size

    def join(self, worker: int) -> None:
        """A worker is ready."""
        self.held[worker] = deque()

    def give(self) -> tuple[int, int] | None:
        """Hand out the next job: (worker, job); None if no worker may have one now.

        A worker without a job comes first. One that has a job gets another only while enough wait for all, so
        that at the end none waits behind a job while another worker is idle.
        """
        if not self.waiting or not self.held:
            return None
        worker = min(self.held, key=lambda worker: len(self.held[worker]))
        full = len(self.held[worker]) >= PREFETCH
        if full or (self.held[worker] and len(self.waiting) <= len(self.held)):
            return None
        job = max(self.waiting, key=lambda job: (self.deaths[job] > 0, self.waiting[job]))
        self.sizes[job] = self.waiting.pop(job)
        self.held[worker].append(job)
        return worker, job

    def finish(self, worker: int, job: int) -> None:
        """A worker has done a job."""
        self.held[worker].remove(job)
        del self.sizes[job]

    def leave(self, worker: int) -> int | None:
        """A worker died: its jobs wait again. Returns the job that it was at, if that is now given up.

        The jobs after the first one had not begun, so its death does not count for them.
        """
        lost = self.held.pop(worker, deque())
        for job in lost:
            self.waiting[job] = self.sizes.pop(job)
        if not lost:
            return None
        self.deaths[lost[0]] += 1
        if self.deaths[lost[0]] < self.tries:
            return None
        del self.waiting[lost[0]]
        return lost[0]
