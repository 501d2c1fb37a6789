"""The site's audit log: one JSON line an event, only ever added to, kept by its owner alone.

It says what was asked, what was decided, and what left. It never holds text of an example.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from shepherd.site.policy import Refusal

if TYPE_CHECKING:
    from shepherd.federation.wire import Request

FILE = "audit.jsonl"
What = Literal["granted", "refused", "answered", "failed"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Left:
    """What left the site: bytes of the reply, how many tensors, and the names of the metrics."""

    bytes: int
    tensors: int = 0
    metrics: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One line. `rule` and `sentence` are a refusal's; `fault` is the class of a failure's error."""

    when: str
    what: What
    kind: str
    run: str
    round: int
    id: str
    by: str = "server"
    asked: Mapping[str, Any] = field(default_factory=dict)
    rule: str = ""
    sentence: str = ""
    fault: str = ""
    left: Left | None = None


def granted_to(request: Request, now: datetime) -> Event:
    raise NotImplementedError


def refused(request: Request, now: datetime, refusal: Refusal) -> Event:
    raise NotImplementedError


def answered(request: Request, now: datetime, left: Left) -> Event:
    raise NotImplementedError


def failed(request: Request, now: datetime, error: BaseException) -> Event:
    raise NotImplementedError


def record(path: Path, event: Event) -> None:
    """Add one event, and see it on the disk before returning.

    Raises:
        FolderError: it cannot be written; the log then holds no part of it, and the request must be refused.
    """
    raise NotImplementedError


def events(path: Path) -> list[Event]:
    """The events of a log, oldest first, without a line that was never finished."""
    raise NotImplementedError


def granted(path: Path, month: str, *, kind: str = "train", besides: str = "") -> int:
    """How many different questions of a kind were granted in a month such as "2026-11".

    The same question asked again (the same run, round and request id) counts once, and the one with the
    id `besides` does not count.
    """
    raise NotImplementedError
