"""One request that a site works on, and whether anybody still waits for it."""

from __future__ import annotations

import threading
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass, field, replace
from time import monotonic

from shepherd.silos.protocol.wire import Request
from shepherd.silos.site.audit import Released
from shepherd.silos.site.redaction import GivenUp

NEWER = "it was given up, since a newer request came"


@dataclass(frozen=True, slots=True)
class Answer:
    """A reply as bytes, and what the audit log says of it."""

    message: bytes
    left: Released


@dataclass(slots=True, eq=False)
class Task:
    """One request that is being worked on, or waits for it; who asks it again waits for the same."""

    request: Request
    until: float
    """On the monotonic clock: after it nobody wants the answer."""
    cancelled: bool = False
    committed: bool = False
    lock: threading.Lock = field(default_factory=threading.Lock)
    future: Future[Answer] = field(default_factory=Future)

    def require_wanted(self) -> None:
        """Raise GivenUp if nobody waits for the answer any more."""
        if self.cancelled:
            raise GivenUp(NEWER)
        if monotonic() > self.until:
            raise GivenUp(f"it gave no answer within {self.request.deadline:g} s")

    def commit(self) -> None:
        """From here on the work is finished, whatever comes; raises as `require_wanted`."""
        with self.lock:
            self.require_wanted()
            self.committed = True

    def cancel(self) -> None:
        """Give it up. One that has not begun lets go of its adapter, since it may wait long for its turn."""
        self.cancelled = True
        if self.future.cancel():
            self.request = replace(self.request, broadcast=None)


def waited(task: Task, until: float) -> Answer:
    """The answer, if it comes in time; or what went wrong."""
    try:
        return task.future.result(timeout=max(0.0, until - monotonic()))
    except CancelledError:
        raise GivenUp(NEWER) from None
    except TimeoutError:
        if task.future.done():  # the work's own, or it was done just now
            return task.future.result()
    with task.lock:
        late = not task.future.done() and not task.committed
    if late:
        raise GivenUp(f"it gave no answer within {task.request.deadline:g} s")
    return task.future.result()
