"""The site's audit log: one JSON line an event, only ever added to, kept by its owner alone.

    audit-2026-11.jsonl         the events of a month
    audit-2026-11.counts.json   what of it is counted with, so that no request reads the whole; made again
                                from the log where it is missing or does not fit
    audit.jsonl                 of earlier versions, read and never written

It says what was asked, what was decided, and what left. It never holds text of an example: a failure is
written as the class of its error, and what came from outside is cut short.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

from shepherd.errors import FolderError, SettingsError
from shepherd.io import lock, private
from shepherd.settings import RunSettings
from shepherd.silos.site.policy import LONGEST, Granted, Refusal, Visit
from shepherd.silos.site.site_settings import ScoringTable, asked

if TYPE_CHECKING:
    from shepherd.silos.protocol.wire import Request

FILE = "audit.jsonl"
PRIVATE = 0o600
WHOLE_LINES = 10
"""Events of one sort that each have a line; after them only the 20th, 40th, 80th, ... has one."""
MOST_SORTS = 200
"""Sorts told apart by their run; whoever names more runs is counted without it."""
TAIL_BYTES = 4096
What = Literal["granted", "refused", "answered", "failed"]
Question = tuple[str, int, str]
"""A request's run, round and id."""


class Sort(NamedTuple):
    """What makes events repeat one another. Of visits and scores, what was granted and answered is told
    apart by the question, since the month's budget bounds how many there are; the rest by run and cause."""

    what: str
    kind: str = ""
    run: str = ""
    round: int = -1
    id: str = ""
    why: str = ""
    """A refusal's rule, or the class of a failure's error."""
    begun: bool = False
    """Whether what failed had been granted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Released:
    """What left the site: bytes of the reply, how many tensors, each metric with its value, and of a score
    each category's mean loss, tokens and examples. Logs of earlier versions have no values."""

    bytes: int
    tensors: int = 0
    metrics: Mapping[str, float | None] = field(default_factory=dict)
    scores: Mapping[str, Mapping[str, float]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One line: `granted` or `refused` first, then `answered` or `failed`.

    `when` is ISO 8601 in the site's local time; `asked` is what the request comes to; `rule` and
    `sentence` are a refusal's; `fault` is the class of a failure's error; `left` is an answer's; `more` is
    how many of the same sort came since the last line about them.
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
    more: int = 0
    fault: str = ""
    left: Released | None = None


def granted_to(
    request: Request,
    now: datetime,
    *,
    visit: Visit | None = None,
    scoring: ScoringTable | None = None,
    behind: Mapping[str, int] = {},
) -> Event:
    """The policy allows the request; to be recorded before anything is computed.

    Args:
        visit: of a request to train, how long the visit is.
        scoring: of a request to score, what the owner has scored.
        behind: of a request to score, how many examples stand behind each number.
    """
    comes_to = {**summary(request), **_adapter(request)}
    if visit is not None:
        comes_to |= {"steps": visit.steps, "examples": visit.taken, "different": visit.different}
    if scoring is not None:
        comes_to |= {"scoring": {**scoring.model_dump(), "behind": dict(behind)}}
    return Event(what="granted", asked=comes_to, **_of(request, now))


def refused(request: Request, now: datetime, refusal: Refusal) -> Event:
    """The policy refuses the request; what cannot be read of its settings is left out."""
    of = _of(request, now)
    try:
        comes_to = summary(request)
    except SettingsError:  # as of another version, which is refused by its number
        comes_to = {}
    return Event(what="refused", asked=comes_to, rule=refusal.rule, sentence=refusal.sentence, **of)


def answered(request: Request, now: datetime, left: Released) -> Event:
    """The answer leaves; to be recorded before it does."""
    return Event(what="answered", left=left, **_of(request, now))


def failed(request: Request, now: datetime, error: BaseException) -> Event:
    """No answer could be given. Only the class of the error is kept, since its message may quote data."""
    return Event(what="failed", fault=type(error).__name__, **_of(request, now))


def summary(request: Request) -> dict[str, Any]:
    """What a request asks of the site, in the run file's words: all that decides how much leaves.

    Raises:
        SettingsError: the request's settings are no run file's.
    """
    run = asked(request.settings)
    return {
        "base": _short(request.base),
        "version": _short(request.version),
        "cohort": request.cohort,
        "rounds": run.federation.rounds,
        "weights": run.federation.weights,
        "dtype": run.model.dtype,
        "rank": run.adapter.rank,
        "alpha": run.adapter.alpha,
        "dropout": run.adapter.dropout,
        "algorithm": _short(run.algorithm.name),
        "transforms": [_short(part.name) for part in run.transforms],
        "template": run.data.template,
        "max_tokens": run.data.max_tokens,
        **_visit(run),
        "batch_size": run.tuning.batch_size,
        "learning_rate": run.tuning.learning_rate,
        "optimiser": _short(json.dumps(run.tuning.optimiser.model_dump())),
        "objective": _short(json.dumps(run.tuning.objective.model_dump())),
        "clip_norm": run.tuning.clip_norm,
        "loss_on": run.tuning.loss_on,
    }


def _visit(run: RunSettings) -> dict[str, Any]:
    if run.tuning.max_steps is not None:
        return {"max_steps": run.tuning.max_steps}
    return {"epochs": run.tuning.epochs or 1.0}


def _adapter(request: Request) -> dict[str, Any]:
    """Which adapter the question is about, so that two questions about one can be told from two."""
    if request.broadcast is None:
        return {}
    adapter, digest = request.broadcast.adapter, hashlib.sha256()
    for name, tensor in adapter.items():
        digest.update(f"{name} {tensor.shape}\n".encode())
        digest.update(np.ascontiguousarray(tensor).data)
    return {"adapter": digest.hexdigest()[:32], "norm": _finite(adapter.norm())}


def _finite(number: float) -> float | str:
    """JSON has no other numbers."""
    return float(f"{number:.6g}") if abs(number) < float("inf") else str(number)


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


# writing ---------------------------------------------------------------------------------------------------


def record(path: Path, event: Event) -> None:
    """Add one event to its month's log beside `path`, and see it on the disk before returning.

    A line that a crash has left unfinished gets its end first, so that it spoils no other. Of many events
    of one sort only some have a line, which says how many more there were.

    Raises:
        FolderError: it cannot be written; the log then holds no part of it, and the request is to be
            refused.
    """
    log = of_month(path, event.when[:7])
    with _told(log):
        new = not log.exists()
        handle = os.open(log, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW, PRIVATE)
        try:
            lock.wait_for(handle)  # given back when the handle is closed
            counts = counted(path, event.when[:7])
            line = _numbered(event, counts)
            if line is None:
                counts = replace(counts, times=_counting(counts.times, [event]))
            else:
                _append(handle, json.dumps(_plain(line), allow_nan=False, separators=(",", ":")).encode())
                counts = counted(path, event.when[:7], counts)
            _keep(_beside(log), counts)
        finally:
            os.close(handle)
        if new:
            private.sync(log.parent)


def of_month(path: Path, month: str) -> Path:
    """Where the events of a month such as "2026-11" lie, beside `path`."""
    return path.with_name(f"{path.stem}-{month}.jsonl")


def _beside(log: Path) -> Path:
    return log.with_suffix(".counts.json")


def _numbered(event: Event, counts: Counts) -> Event | None:
    """The event as it is written, or None where it is only counted."""
    number = counts.times.get(_sort(counts.times, event), 0) + 1
    if number <= WHOLE_LINES:
        return event
    times, rest = divmod(number, WHOLE_LINES)
    if rest or times & (times - 1):
        return None
    more = number - max(WHOLE_LINES, number // 2) - 1  # since the line before
    said = f"{event.sentence} (and {more:,} more)" if event.sentence else ""
    return replace(event, more=more, sentence=said)


def _plain(event: Event) -> dict[str, Any]:
    """Without what has nothing to say."""
    kept = {name: value for name, value in asdict(event).items() if value not in ("", {}, None)}
    if not event.more:
        del kept["more"]
    if event.left is not None:
        kept["left"] = {name: value for name, value in kept["left"].items() if value != {}}
    return {"what": kept.pop("what"), **kept}


def _append(handle: int, line: bytes) -> None:
    before = os.fstat(handle)
    if before.st_mode & 0o077:
        os.fchmod(handle, PRIVATE)
    torn = before.st_size and os.pread(handle, 1, before.st_size - 1) != b"\n"
    rest = b"\n" * bool(torn) + line + b"\n"
    try:
        while rest:
            rest = rest[os.write(handle, rest) :]
        os.fsync(handle)
    except OSError:
        with suppress(OSError):
            os.ftruncate(handle, before.st_size)
        raise


@contextmanager
def _told(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        why = "its disk is full" if full else error.strerror
        fix = "free some space" if full else "check the path and its permissions"
        raise FolderError(
            f"audit log {path} cannot be used ({why}); {fix}: what cannot be audited is refused"
        ) from error


# counting --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """What is counted of a month: how often there was an event of each sort.

    `bytes` of the log are counted in it, the last of which have the digest `tail`.
    """

    bytes: int = 0
    tail: str = ""
    times: Mapping[Sort, int] = field(default_factory=dict)


def _sort(times: Mapping[Sort, int], event: Event) -> Sort:
    """What an event is counted under; once there are many sorts that name a run, it is left out."""
    if event.what in ("granted", "answered") and event.kind != "join":
        return Sort(event.what, event.kind, event.run, event.round, event.id)
    kind = "" if event.what == "refused" else event.kind  # a rule refuses whatever was asked
    begun = event.what == "failed" and _try(event.kind, (event.run, event.round, event.id)) in times
    sort = Sort(event.what, kind, event.run, why=event.rule or event.fault, begun=begun)
    told_apart = sort in times or sum(not each.id for each in times) < MOST_SORTS
    return sort if told_apart else sort._replace(run="")


def _try(kind: str, asked: Question) -> Sort:
    return Sort("granted", kind, *asked)


def _counting(times: Mapping[Sort, int], events: Iterable[Event]) -> dict[Sort, int]:
    """The counts with these events, whose lines may stand for those before them."""
    counting = dict(times)
    for event in events:
        sort = _sort(counting, event)
        counting[sort] = max(counting.get(sort, 0) + 1, 2 * (event.more + 1) if event.more else 0)
    return counting


def counted(path: Path, month: str, known: Counts | None = None) -> Counts:
    """What a month's log comes to: as it was kept, or is `known`, and what was added since.

    Raises:
        FolderError: the log is there and cannot be read.
    """
    log = of_month(path, month)
    with _told(log):
        if not log.exists():
            return _added(Counts(), _lines(path), month)
        with open(log, "rb") as file:
            before = known or _kept(_beside(log))
            if before is None or not _fits(before, file.fileno()):
                before = _added(Counts(), _lines(path), month)
            file.seek(before.bytes)
            added = file.read()
            whole = added.rfind(b"\n") + 1  # the rest is read again, with what follows it
            counts = _added(before, added.split(b"\n"), month)
            size = before.bytes + whole
            return replace(counts, bytes=size, tail=_digest(file.fileno(), size))


def _lines(path: Path) -> list[bytes]:
    return path.read_bytes().split(b"\n") if path.exists() else []


def _added(counts: Counts, lines: list[bytes], month: str) -> Counts:
    found = (event for event in map(_event, lines) if event is not None and event.when.startswith(month))
    return replace(counts, times=_counting(counts.times, found))


def _fits(counts: Counts, log: int) -> bool:
    return counts.bytes <= os.fstat(log).st_size and counts.tail == _digest(log, counts.bytes)


def _digest(log: int, size: int) -> str:
    begin = max(0, size - TAIL_BYTES)
    return hashlib.sha256(os.pread(log, size - begin, begin)).hexdigest()


def _kept(place: Path) -> Counts | None:
    try:
        table = json.loads(place.read_bytes())
        times = {Sort(*sort): int(count) for *sort, count in table["times"]}
        return Counts(bytes=int(table["bytes"]), tail=table["tail"], times=times)
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None


def _keep(place: Path, counts: Counts) -> None:
    """Not forced to the disk, and no fault where it cannot be written: the log has it all."""
    times = [[*sort, count] for sort, count in counts.times.items()]
    table = {"bytes": counts.bytes, "tail": counts.tail, "times": times}
    beside = place.with_name(f"{place.name}.new")
    with suppress(OSError):
        handle = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, PRIVATE)
        with open(handle, "w", encoding="utf8") as file:
            file.write(json.dumps(table, separators=(",", ":")))  # json.dump is much slower
        beside.replace(place)


def granted(path: Path, month: str, *, kind: str = "train", asked: Question = ("", -1, "")) -> Granted:
    """What a month such as "2026-11" has granted already, and to whoever asks this question of a kind.

    Raises:
        FolderError: the log is there and cannot be read.
    """
    times = counted(path, month).times
    tries = {sort: times[sort] for sort in times if sort.what == "granted" and sort.id}
    of_run = [sort for sort in tries if sort.run == asked[0]]
    answers = sum(sort._replace(what="answered") in times for sort in of_run)
    early = [sort for sort in times if (sort.what, sort.run, sort.begun) == ("failed", asked[0], False)]
    return Granted(
        rounds=sum(tries[each] for each in tries if each.kind == kind),
        runs=len({each.run for each in tries} - {asked[0]}),
        tries=times.get(_try(kind, asked), 0),
        # by what began, since a process that was killed has left no other line
        failures=sum(tries[each] for each in of_run)
        - answers
        + sum(times[each] for each in early if each.kind != "join"),
        answers=times.get(Sort("answered", kind, *asked), 0),
    )


# reading ---------------------------------------------------------------------------------------------------


def events(path: Path) -> list[Event]:
    """The events of all months, oldest first, without a line that was never finished.

    Raises:
        FolderError: a log is there and cannot be read.
    """
    months = [log for log in path.parent.glob(f"{path.stem}-*.jsonl") if re.search(r"-\d{4}-\d\d$", log.stem)]
    found = []
    for log in (path, *sorted(months)):
        with _told(log):
            found += [_event(line) for line in _lines(log)]
    return [event for event in found if event is not None]


def _event(line: bytes) -> Event | None:
    try:
        row = json.loads(line)
        left = row.pop("left", None)
        if left is not None:
            metrics = left.get("metrics", {})
            # earlier versions wrote their names alone
            metrics = metrics if isinstance(metrics, dict) else dict.fromkeys(metrics)
            left = Released(**{**left, "metrics": metrics})
        return Event(**{**row, "when": str(row["when"])}, left=left)
    except (ValueError, TypeError, KeyError, AttributeError):
        return None


def month_of(now: datetime) -> str:
    """The month that a request counts to.

    >>> month_of(datetime(2026, 11, 22))
    '2026-11'
    """
    return now.isoformat()[:7]
