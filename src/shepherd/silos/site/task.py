"""A request that a site works on, and whether its reply is still awaited."""

from __future__ import annotations

import threading
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass, field, replace
from time import monotonic

from shepherd.silos.protocol.wire import Request
from shepherd.silos.site.audit import Released
from shepherd.silos.site.redaction import Cancelled

SUPERSEDED = "it was cancelled, since a newer request arrived"


@dataclass(frozen=True, slots=True)
class Answer:
    """A reply as bytes, and its entry for the audit log."""

    message: bytes
    left: Released


@dataclass(slots=True, eq=False)
class Task:
    """One request that is queued or worked on; a repetition of it waits for the same task."""

    request: Request
    until: float
    """Time on the monotonic clock after which the reply is useless."""
    cancelled: bool = False
    committed: bool = False
    lock: threading.Lock = field(default_factory=threading.Lock)
    future: Future[Answer] = field(default_factory=Future)

    def require_awaited(self) -> None:
        """Raise GivenUp if the reply is no longer awaited."""
        if self.cancelled:
            raise Cancelled(SUPERSEDED)
        if monotonic() > self.until:
            raise Cancelled(f"it did not finish within {self.request.deadline:g} s")

    def commit(self) -> None:
        """Mark the work as certain to be finished; raises like `require_awaited`."""
        with self.lock:
            self.require_awaited()
            self.committed = True

    def cancel(self) -> None:
        """Cancel the task. One that has not started frees its adapter, since it may stay queued for long."""
        self.cancelled = True
        if self.future.cancel():
            self.request = replace(self.request, broadcast=None)


def wait_for(task: Task, until: float) -> Answer:
    """Wait for the task's answer until `until`; raise its error, or GivenUp if it is late."""
    try:
        return task.future.result(timeout=max(0.0, until - monotonic()))
    except CancelledError:
        raise Cancelled(SUPERSEDED) from None
    except TimeoutError:
        if task.future.done():  # the work raised it, or finished just now
            return task.future.result()
    with task.lock:
        late = not task.future.done() and not task.committed
    if late:
        raise Cancelled(f"it did not finish within {task.request.deadline:g} s")
    return task.future.result()
