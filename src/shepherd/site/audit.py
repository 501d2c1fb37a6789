"""The site's audit log: one JSON line an event, only ever added to, kept by its owner alone.

It says what was asked, what was decided, and what left. It never holds text of an example: a failure is
written as the class of its error, and what came from outside is cut short.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from shepherd.errors import FolderError, SettingsError
from shepherd.settings import RunSettings
from shepherd.site.policy import LONGEST, Refusal
from shepherd.site.settings import asked

if TYPE_CHECKING:
    from shepherd.federation.wire import Request

FILE = "audit.jsonl"
PRIVATE = 0o600
What = Literal["granted", "refused", "answered", "failed"]
Question = tuple[str, int, str]
"""A request's run, round and id."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Left:
    """What left the site: bytes of the reply, how many tensors, and the names of the metrics."""

    bytes: int
    tensors: int = 0
    metrics: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One line: `granted` or `refused` first, then `answered` or `failed`.

    `when` is ISO 8601 in the site's local time; `asked` is what the request comes to; `rule` and
    `sentence` are a refusal's; `fault` is the class of a failure's error; `left` is an answer's.
    """

    when: str
    what: What
    kind: str
    run: str
    round: int
    id: str
    asked: Mapping[str, Any] = field(default_factory=dict)
    rule: str = ""
    sentence: str = ""
    fault: str = ""
    left: Left | None = None


def granted_to(request: Request, now: datetime) -> Event:
    """The policy allows the request; to be recorded before anything is computed."""
    return Event(what="granted", asked=summary(request), **_of(request, now))


def refused(request: Request, now: datetime, refusal: Refusal) -> Event:
    """The policy refuses the request; what cannot be read of its settings is left out."""
    of = _of(request, now)
    try:
        comes_to = summary(request)
    except SettingsError:  # as of another version, which is refused by its number
        comes_to = {}
    return Event(what="refused", asked=comes_to, rule=refusal.rule, sentence=refusal.sentence, **of)


def answered(request: Request, now: datetime, left: Left) -> Event:
    """The answer leaves; to be recorded before it does."""
    return Event(what="answered", left=left, **_of(request, now))


def failed(request: Request, now: datetime, error: BaseException) -> Event:
    """No answer could be given. Only the class of the error is kept, since its message may quote data."""
    return Event(what="failed", fault=type(error).__name__, **_of(request, now))


def summary(request: Request) -> dict[str, Any]:
    """What a request asks of the site, in the run file's words.

    Raises:
        SettingsError: the request's settings are no run file's.
    """
    run = asked(request.settings)
    return {
        "base": _short(request.base),
        "version": _short(request.version),
        "cohort": request.cohort,
        "rounds": run.federation.rounds,
        "rank": run.adapter.rank,
        "algorithm": _short(run.algorithm.name),
        "transforms": [_short(part.name) for part in run.transforms],
        **_visit(run),
        "batch_size": run.tuning.batch_size,
        "loss_on": run.tuning.loss_on,
    }


def _visit(run: RunSettings) -> dict[str, Any]:
    if run.tuning.max_steps is not None:
        return {"max_steps": run.tuning.max_steps}
    return {"epochs": run.tuning.epochs or 1.0}


def _of(request: Request, now: datetime) -> dict[str, Any]:
    return {
        "when": now.isoformat(timespec="seconds"),
        "kind": request.kind,
        "run": _short(request.run),
        "round": request.round,
        "id": _short(request.id),
    }


def _short(text: str) -> str:
    return text[:LONGEST]


def record(path: Path, event: Event) -> None:
    """Add one event, and see it on the disk before returning.

    A line that a crash has left unfinished gets its end first, so that it spoils no other.

    Raises:
        FolderError: it cannot be written; the log then holds no part of it, and the request is to be
            refused.
    """
    line = json.dumps(_plain(event), allow_nan=False, separators=(",", ":")).encode() + b"\n"
    with _mending(path):
        new = not path.exists()
        handle = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW, PRIVATE)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)  # given back when the handle is closed
            _append(handle, line)
        finally:
            os.close(handle)
        if new:
            _sync_folder(path.parent)


def _plain(event: Event) -> dict[str, Any]:
    """Without what has nothing to say."""
    kept = {name: value for name, value in asdict(event).items() if value not in ("", {}, None)}
    return {"what": kept.pop("what"), **kept}


def _append(handle: int, line: bytes) -> None:
    before = os.fstat(handle)
    if before.st_mode & 0o077:
        os.fchmod(handle, PRIVATE)
    torn = before.st_size and os.pread(handle, 1, before.st_size - 1) != b"\n"
    rest = b"\n" + line if torn else line
    try:
        while rest:
            rest = rest[os.write(handle, rest) :]
        os.fsync(handle)
    except OSError:
        with suppress(OSError):
            os.ftruncate(handle, before.st_size)
        raise


def _sync_folder(folder: Path) -> None:
    """Make a new file last through a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def _mending(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        why = "its disk is full" if full else error.strerror
        mend = "free some space" if full else "check the path and its permissions"
        raise FolderError(
            f"audit log {path} cannot be used ({why}); {mend}: what cannot be audited is refused"
        ) from error


def events(path: Path) -> list[Event]:
    """The events of a log, oldest first, without a line that was never finished.

    Raises:
        FolderError: the log is there and cannot be read.
    """
    with _mending(path):
        content = path.read_bytes() if path.exists() else b""
    found = (_event(line) for line in content.split(b"\n"))
    return [event for event in found if event is not None]


def _event(line: bytes) -> Event | None:
    try:
        row = json.loads(line)
        left = row.pop("left", None)
        if left is not None:
            left = Left(**{**left, "metrics": tuple(left["metrics"])})
        return Event(**{**row, "when": str(row["when"])}, left=left)
    except (ValueError, TypeError, KeyError, AttributeError):
        return None


def month_of(now: datetime) -> str:
    """The month that a request counts to.

    >>> month_of(datetime(2026, 11, 22))
    '2026-11'
    """
    return now.isoformat()[:7]


def granted(path: Path, month: str, *, kind: str = "train", besides: Question | None = None) -> int:
    """How many different questions of a kind were granted in a month such as "2026-11".

    The same question asked again counts once, and `besides` does not count.

    Raises:
        FolderError: the log is there and cannot be read.
    """
    questions: set[Question] = {
        (event.run, event.round, event.id)
        for event in events(path)
        if event.what == "granted" and event.kind == kind and event.when.startswith(month)
    }
    return len(questions - {besides})
