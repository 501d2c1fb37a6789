"""The site's audit log: one JSON line for each event, append-only and readable by its owner alone.

    audit-2026-11.jsonl         the events of a month
    audit-2026-11.counts.json   counts of them, so that a request need not read the whole log; rebuilt from
                                the log where the file is missing
    audit.jsonl                 log of an earlier version: read, never written

It records what was asked, what was decided and what was released. It never holds text of an example: a
failure is recorded as the class of its error, and text from outside is cut short.

The budgets of a month are counted from it. So a log that does not begin with what was counted, or has a line
that cannot be read, closes the site: nobody knows then how much was asked. A line that a crash left
unfinished is none, since nothing is done before its event is on the disk; it stays, and is marked.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

from shepherd.errors import FolderError, SettingsError
from shepherd.io import lock, private
from shepherd.settings import RunSettings
from shepherd.silos.protocol.wire import Request
from shepherd.silos.site.policy import MAX_SHOWN_CHARS, MonthUsage, Refusal, Visit
from shepherd.silos.site.site_settings import ScoringTable, parse_request

if TYPE_CHECKING:
    from shepherd.silos.protocol.wire import Asked, SumRequest

FILE = "audit.jsonl"
FILE_MODE = 0o600
FULL_LINES = 10
"""Events of one class that are all written; after them only the 20th, 40th, 80th, ... is."""
MAX_RUN_CLASSES = 200
"""Event classes that are counted by run; beyond this many, the run is left out of the class."""
TAIL_BYTES = 4096
UNFINISHED = b" (unfinished)"
"""End of a line that a crash cut short: it tells of nothing that was done."""
What = Literal["granted", "refused", "answered", "failed"]
RequestKey = tuple[str, int, str]
"""Run, round and id of a request."""


class EventClass(NamedTuple):
    """The class under which an event is counted.

    Granted and answered visits and scores are counted by request, since the month's budget bounds their
    number; all other events by run and cause.
    """

    what: str
    kind: str = ""
    run: str = ""
    round: int = -1
    id: str = ""
    why: str = ""
    """Rule of a refusal, or class of a failure's error."""
    begun: bool = False
    """Whether a failed request had been granted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Released:
    """What a reply released.

    Its size and number of tensors, the value of each metric, and for a score each category's mean loss,
    tokens and examples. Logs of earlier versions have no values.
    """

    bytes: int
    tensors: int = 0
    metrics: Mapping[str, float | None] = field(default_factory=dict)
    scores: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    masked: bool = False
    """Whether an update left, under masks that only the sum over the sites of a round lets go."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One line of the log: a request is first `granted` or `refused`, then `answered` or `failed`.

    `when` is ISO 8601 in the site's local time; `asked` summarises the request; `rule` and `sentence` belong
    to a refusal, `fault` (the class of the error) to a failure, `left` (what was released) to an answer;
    `more` counts the events of the same class since the last line about them.
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


def granted_event(
    request: Request,
    now: datetime,
    *,
    visit: Visit | None = None,
    scoring: ScoringTable | None = None,
    behind: Mapping[str, int] = {},
) -> Event:
    """The event of a request that the policy allows; record it before anything is computed.

    Args:
        visit: for a request to train, the length of the visit.
        scoring: for a request to score, the owner's [scoring] table.
        behind: for a request to score, the number of examples behind each number.
    """
    comes_to = {**summary(request), **_adapter_digest(request)}
    if visit is not None:
        comes_to |= {"steps": visit.steps, "examples": visit.taken, "different": visit.different}
    if scoring is not None:
        comes_to |= {"scoring": {**scoring.model_dump(), "behind": dict(behind)}}
    return Event(what="granted", asked=comes_to, **_event_fields(request, now))


def refused_event(request: Asked, now: datetime, refusal: Refusal) -> Event:
    """The event of a request that the policy refuses; unreadable settings are left out."""
    of = _event_fields(request, now)
    try:
        comes_to = summary(request) if isinstance(request, Request) else _sum_summary(request, ())
    except SettingsError:  # such as another version's, which is refused for its version
        comes_to = {}
    return Event(what="refused", asked=comes_to, rule=refusal.rule, sentence=refusal.sentence, **of)


def answered_event(request: Request, now: datetime, left: Released) -> Event:
    """The event of an answer; record it before the answer is sent."""
    return Event(what="answered", left=left, **_event_fields(request, now))


def sum_event(request: SumRequest, now: datetime, left: Released, sites: Collection[str]) -> Event:
    """The event of an answer to one phase of a secure sum, and the sites that it is about."""
    return Event(
        what="answered", asked=_sum_summary(request, sites), left=left, **_event_fields(request, now)
    )


def _sum_summary(request: SumRequest, sites: Collection[str]) -> dict[str, Any]:
    named = {"sites": [_short(site) for site in sites]} if sites else {}
    return {"attempt": request.attempt, **named}


def failed_event(request: Asked, now: datetime, error: BaseException) -> Event:
    """The event of a failed request, with only the class of the error, whose message may quote data."""
    return Event(what="failed", fault=type(error).__name__, **_event_fields(request, now))


def summary(request: Request) -> dict[str, Any]:
    """Summarise a request by the keys of the run file that decide how much is released.

    Raises:
        SettingsError: the request's settings are not valid.
    """
    run = parse_request(request.settings)
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
        **_visit_keys(run),
        "batch_size": run.tuning.batch_size,
        "learning_rate": run.tuning.learning_rate,
        "optimiser": _short(json.dumps(run.tuning.optimiser.model_dump())),
        "objective": _short(json.dumps(run.tuning.objective.model_dump())),
        "clip_norm": run.tuning.clip_norm,
        **({"private": run.privacy.examples.model_dump()} if run.privacy.examples else {}),
        "loss_on": run.tuning.loss_on,
    }


def _visit_keys(run: RunSettings) -> dict[str, Any]:
    if run.tuning.max_steps is not None:
        return {"max_steps": run.tuning.max_steps}
    return {"epochs": run.tuning.epochs or 1.0}


def _adapter_digest(request: Request) -> dict[str, Any]:
    """Digest and norm of the request's adapter, so that the log shows which requests share one."""
    if request.broadcast is None:
        return {}
    adapter, digest = request.broadcast.adapter, hashlib.sha256()
    for name, tensor in adapter.items():
        digest.update(f"{name} {tensor.shape}\n".encode())
        digest.update(np.ascontiguousarray(tensor).data)
    return {"adapter": digest.hexdigest()[:32], "norm": _finite(adapter.norm())}


def _finite(number: float) -> float | str:
    """The number rounded to six digits; as text where JSON cannot express it."""
    return float(f"{number:.6g}") if abs(number) < float("inf") else str(number)


def _event_fields(request: Asked, now: datetime) -> dict[str, Any]:
    return {
        "when": now.isoformat(timespec="seconds"),
        "kind": request.kind,
        "run": _short(request.run),
        "round": request.round,
        "id": _short(request.id),
    }


def _short(text: str) -> str:
    return text[:MAX_SHOWN_CHARS]


# writing ---------------------------------------------------------------------------------------------------


def record(path: Path, event: Event) -> None:
    """Append one event to its month's log, next to `path`, and flush it to disk before returning.

    A line that a crash left unfinished is ended first. Of many events of one class only some are written,
    with the number of those left out.

    Raises:
        FolderError: the event cannot be written; the log then holds no part of it, and the request has to be
            refused.
    """
    log = month_log(path, event.when[:7])
    with _os_errors_as_folder_error(log):
        new = not log.exists()
        handle = os.open(log, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW, FILE_MODE)
        try:
            lock.wait_for(handle)  # released when the handle is closed
            counts = count_month(path, event.when[:7])
            line = _thin_out(event, counts)
            if line is None:
                counts = replace(counts, times=_add_events(counts.times, [event]))
            else:
                _append(
                    handle, json.dumps(_without_empty(line), allow_nan=False, separators=(",", ":")).encode()
                )
                if new:
                    private.sync(log.parent)
                counts = count_month(path, event.when[:7], counts)
            _write_counts(_counts_file(log), counts)  # after the line: a crash leaves no count of what is not
        finally:
            os.close(handle)


def month_log(path: Path, month: str) -> Path:
    """Path of the log of a month such as "2026-11", next to `path`."""
    return path.with_name(f"{path.stem}-{month}.jsonl")


def _counts_file(log: Path) -> Path:
    return log.with_suffix(".counts.json")


def _thin_out(event: Event, counts: Counts) -> Event | None:
    """The event as it is written, or None if it is only counted."""
    number = counts.times.get(_event_class(counts.times, event), 0) + 1
    if number <= FULL_LINES:
        return event
    times, rest = divmod(number, FULL_LINES)
    if rest or times & (times - 1):
        return None
    more = number - max(FULL_LINES, number // 2) - 1  # since the line before
    said = f"{event.sentence} (and {more:,} more)" if event.sentence else ""
    return replace(event, more=more, sentence=said)


def _without_empty(event: Event) -> dict[str, Any]:
    """The event as JSON's types, without empty fields."""
    kept = {name: value for name, value in asdict(event).items() if value not in ("", {}, None)}
    if not event.more:
        del kept["more"]
    if event.left is not None:
        left = kept["left"].items()
        kept["left"] = {name: value for name, value in left if value != {} and value is not False}
    return {"what": kept.pop("what"), **kept}


def _append(handle: int, line: bytes) -> None:
    before = os.fstat(handle)
    if before.st_mode & 0o077:
        os.fchmod(handle, FILE_MODE)
    rest = _ending(handle, before.st_size) + line + b"\n"
    try:
        while rest:
            rest = rest[os.write(handle, rest) :]
        os.fsync(handle)
    except OSError:
        with suppress(OSError):
            os.ftruncate(handle, before.st_size)
        raise


def _ending(log: int, size: int) -> bytes:
    """What ends the last line of a log: nothing, if it has an end; a mark, if a crash has cut it short."""
    begin, torn = size, b""
    while begin and b"\n" not in torn:
        begin = max(0, begin - TAIL_BYTES)
        torn = os.pread(log, size - begin, begin)
    torn = torn.rpartition(b"\n")[2]
    if not torn:
        return b""
    return b"\n" if _event(torn) else UNFINISHED + b"\n"


@contextmanager
def _os_errors_as_folder_error(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        why = "its disk is full" if full else error.strerror
        fix = "free some space" if full else "check the path and its permissions"
        raise FolderError(
            f"audit log {path} cannot be used ({why}); {fix}: until then every request is refused"
        ) from error


# counting --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """How many events of each class a month has had.

    They cover the first `bytes` of the log, whose end has the digest `tail`.
    """

    bytes: int = 0
    tail: str = ""
    times: Mapping[EventClass, int] = field(default_factory=dict)


def _event_class(times: Mapping[EventClass, int], event: Event) -> EventClass:
    """The class of an event; without its run, once there are many classes that name one."""
    if event.what in ("granted", "answered") and event.kind != "join":
        return EventClass(event.what, event.kind, event.run, event.round, event.id)
    kind = "" if event.what == "refused" else event.kind  # a rule refuses every kind of request
    begun = event.what == "failed" and _attempt(event.kind, (event.run, event.round, event.id)) in times
    sort = EventClass(event.what, kind, event.run, why=event.rule or event.fault, begun=begun)
    told_apart = sort in times or sum(not each.id for each in times) < MAX_RUN_CLASSES
    return sort if told_apart else sort._replace(run="")


def _attempt(kind: str, asked: RequestKey) -> EventClass:
    return EventClass("granted", kind, *asked)


def _add_events(times: Mapping[EventClass, int], events: Iterable[Event]) -> dict[EventClass, int]:
    """The counts with these events added; a line may represent events before it."""
    counting = dict(times)
    for event in events:
        sort = _event_class(counting, event)
        counting[sort] = max(counting.get(sort, 0) + 1, 2 * (event.more + 1) if event.more else 0)
    return counting


def count_month(path: Path, month: str, known: Counts | None = None) -> Counts:
    """Count the events of a month, from the stored counts (or `known`) and the lines added since.

    Raises:
        FolderError: the log exists and cannot be read, has a line that cannot, or does not begin with what
            was counted.
    """
    log = month_log(path, month)
    with _os_errors_as_folder_error(log):
        # before the log, to which another process may add a line, and count it, in between
        before = known or _read_counts(_counts_file(log))
        if before is None:
            # a line of an earlier version's log that cannot be read may be one that a crash cut short
            before = _with_events(Counts(), filter(None, map(_event, _lines(path))), month)
        if not log.exists():
            _require_counted(before.bytes == 0, log, before)
            return before
        with open(log, "rb") as file:
            _require_counted(_matches_log(before, file.fileno()), log, before)
            file.seek(before.bytes)
            added = file.read()
            whole = added.rfind(b"\n") + 1  # an unfinished line is read again when it is complete
            counts = _with_events(before, _events_of(log, added[:whole].split(b"\n")), month)
            size = before.bytes + whole
            return replace(counts, bytes=size, tail=_digest(file.fileno(), size))


def _lines(path: Path) -> list[bytes]:
    return path.read_bytes().split(b"\n") if path.exists() else []


def _events_of(log: Path, lines: Iterable[bytes]) -> Iterator[Event]:
    """The events of whole lines. An empty line is none, nor is one that a crash cut short.

    Raises:
        FolderError: a line cannot be read.
    """
    for line in lines:
        event = _event(line)
        if event is not None:
            yield event
        elif line.strip() and not line.endswith(UNFINISHED):
            number = _lines(log).index(line) + 1
            raise FolderError(
                f"line {number} of audit log {log} cannot be read; restore it from a copy, or delete the line"
                " if a crash cut it short: until then every request is refused"
            )


def _with_events(counts: Counts, found: Iterable[Event], month: str) -> Counts:
    of_month = (event for event in found if event.when.startswith(month))
    return replace(counts, times=_add_events(counts.times, of_month))


def _matches_log(counts: Counts, log: int) -> bool:
    if not counts.bytes:
        return True
    return counts.bytes <= os.fstat(log).st_size and counts.tail == _digest(log, counts.bytes)


def _require_counted(there: bool, log: Path, counts: Counts) -> None:
    """Raise FolderError unless everything that was counted of a log is there."""
    if not there:
        raise FolderError(
            f"audit log {log} {'was cut or changed' if any(_lines(log)) else 'is missing'}, and by"
            f" {_counts_file(log)} it had {counts.bytes} bytes; restore it from a copy of that time, or"
            " delete that file to count what is left of this month: until then every request is refused"
        )


def _digest(log: int, size: int) -> str:
    begin = max(0, size - TAIL_BYTES)
    return hashlib.sha256(os.pread(log, size - begin, begin)).hexdigest()


def _read_counts(place: Path) -> Counts | None:
    try:
        table = json.loads(place.read_bytes())
        times = {EventClass(*sort): int(count) for *sort, count in table["times"]}
        return Counts(bytes=int(table["bytes"]), tail=table["tail"], times=times)
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None


def _write_counts(place: Path, counts: Counts) -> None:
    """Store the counts, best effort: they can be rebuilt from the log."""
    times = [[*sort, count] for sort, count in counts.times.items()]
    table = {"bytes": counts.bytes, "tail": counts.tail, "times": times}
    temporary = place.with_name(f"{place.name}.new")
    with suppress(OSError):
        handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, FILE_MODE)
        with open(handle, "w", encoding="utf8") as file:
            file.write(json.dumps(table, separators=(",", ":")))  # json.dump is much slower
        temporary.replace(place)


def month_usage(
    path: Path, month: str, *, kind: str = "train", asked: RequestKey = ("", -1, "")
) -> MonthUsage:
    """What was granted in a month such as "2026-11", in all and to one request.

    Args:
        kind: "train" or "score".
        asked: run, round and id of the request.

    Raises:
        FolderError: the log exists and cannot be read.
    """
    times = count_month(path, month).times
    tries = {sort: times[sort] for sort in times if sort.what == "granted" and sort.id}
    of_run = [sort for sort in tries if sort.run == asked[0]]
    answers = sum(sort._replace(what="answered") in times for sort in of_run)
    early = [sort for sort in times if (sort.what, sort.run, sort.begun) == ("failed", asked[0], False)]
    return MonthUsage(
        rounds=sum(tries[each] for each in tries if each.kind == kind),
        runs=len({each.run for each in tries} - {asked[0]}),
        tries=times.get(_attempt(kind, asked), 0),
        # counted from what was granted, since a killed process leaves no other line
        failures=sum(tries[each] for each in of_run)
        - answers
        + sum(times[each] for each in early if each.kind in ("train", "score")),
        answers=times.get(EventClass("answered", kind, *asked), 0),
    )


# reading ---------------------------------------------------------------------------------------------------


def events(path: Path) -> list[Event]:
    """The events of all months, oldest first, without unfinished lines.

    Raises:
        FolderError: a log exists and cannot be read.
    """
    months = [log for log in path.parent.glob(f"{path.stem}-*.jsonl") if re.search(r"-\d{4}-\d\d$", log.stem)]
    found = []
    for log in (path, *sorted(months)):
        with _os_errors_as_folder_error(log):
            found += [_event(line) for line in _lines(log)]
    return [event for event in found if event is not None]


def _event(line: bytes) -> Event | None:
    try:
        row = json.loads(line)
        left = row.pop("left", None)
        if left is not None:
            metrics = left.get("metrics", {})
            # earlier versions wrote only the names
            metrics = metrics if isinstance(metrics, dict) else dict.fromkeys(metrics)
            left = Released(**{**left, "metrics": metrics})
        return Event(**{**row, "when": str(row["when"])}, left=left)
    except (ValueError, TypeError, KeyError, AttributeError):
        return None


def month_of(now: datetime) -> str:
    """The month in which a request is counted.

    >>> month_of(datetime(2026, 11, 22))
    '2026-11'
    """
    return now.isoformat()[:7]
