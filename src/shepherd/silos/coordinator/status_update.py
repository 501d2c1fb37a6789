"""Parse the status of a job as strictly as a message of a site: the server is not trusted either.

A missing or unknown key, another type, a text or number that is too large is a FederationError. So whatever
the server sends, the run folder grows by one row a round and by checkpoints of the expected size.
"""

from __future__ import annotations

import base64
import binascii
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from shepherd.errors import FederationError, WireError
from shepherd.run import ledger
from shepherd.silos.protocol import schema
from shepherd.silos.protocol.jobspec import MAX_SITES
from shepherd.silos.protocol.schema import Check
from shepherd.silos.server.run_status import MAX_ROWS_PER_ANSWER
from shepherd.silos.server.server_run import CHUNK_BYTES

Row = dict[str, Any]
MAX_ROW_CHARS = 10**6
"""Length of a log row as JSON."""
MAX_MESSAGES = 1000
"""Messages of a job in one answer; if it has sent this many, further ones are not shown."""
MAX_ROUND = 10**9
MAX_MESSAGE_CHARS = 20_000
"""Length of a message: the error that ends a run quotes a sentence for each of several sites."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JobStatus:
    """The status of a job, as the server reports it."""

    opened: bool
    """Whether the job has read the run's log."""
    round: int
    """Number of finished rounds at the server."""
    count: int
    """Rows in the server's log: rounds 0 to count - 1."""
    rows: Sequence[Row]
    """Rows from the requested one, in order."""
    said: Sequence[str]
    """Messages from the requested one, in order."""
    progress: Row | None
    """Progress of the round under way, as `io.progress.Progress` takes it."""
    outcome: Row | None
    """{"finished": True}, or {"error", "kind"}; None before the end."""
    present: Sequence[str]
    """Sites that are connected."""


def parse_status(answer: Any, rounds: int, rows: int = 0, most_rounds: int = 0) -> JobStatus:
    """Parse the status of a job.

    Args:
        rounds: rounds of the run; -1 if unknown.
        most_rounds: the most rounds that the run was ever asked for.
        rows: log rows that were known when the status was requested; earlier ones are refused.

    Raises:
        FederationError: the answer is not a status, or the server has made more rounds than these.
    """
    most = rounds if rounds >= 0 else MAX_ROUND
    made = _table(answer).get("round")
    if type(made) is int and most < made <= most_rounds:  # bool is an int
        raise FederationError(
            f"the server has made {made} rounds of this run already, more than the {most} asked for; resume"
            f" it with federation.rounds={made} or more"
        )
    checks: Mapping[str, Check] = {
        "opened": _boolean,
        "round": _at_most(most),
        "count": _at_most(most + 1),
        "rows": lambda value: _check_rows(value, rows, most),
        "said": _sentences,
        "progress": _progress,
        "outcome": _outcome,
        "present": _list_of(schema.label),
    }
    without_state = {
        key: value for key, value in _table(answer).items() if key != "state"
    }  # see `parse_piece`
    return JobStatus(**_read_fields(without_state, checks))


def parse_piece(answer: Any, offset: int, most: int) -> tuple[bytes, int] | None:
    """Parse a piece of a checkpoint's file: its bytes and the size of the whole file; None if it is gone.

    Args:
        offset: position in the file, in bytes.
        most: largest size of the whole file that is accepted, in bytes.

    Raises:
        FederationError: the answer does not hold such a piece.
    """
    state = _table(answer).get("state")
    if state is None:
        return None
    part = _read_fields(state, {"of": _at_most(most), "data": _base64})
    if offset + len(part["data"]) > part["of"]:
        raise FederationError(_invalid(f"a piece of a checkpoint goes beyond its {part['of']} bytes"))
    return part["data"], part["of"]


def _read_fields(value: Any, checks: Mapping[str, Check]) -> Row:
    try:
        return schema.read(value, checks)
    except (WireError, ValueError, OverflowError) as error:  # the last for an integer of many digits
        raise FederationError(_invalid(str(error))) from error


def _invalid(why: str) -> str:
    return f"the server's status of the run is invalid ({schema.sentence(why)}); ask the server's operator"


def _table(value: Any) -> Row:
    try:
        return schema.mapping(value)
    except ValueError as error:
        raise FederationError(_invalid(f"its answer {error}")) from error


def _boolean(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError("is neither true nor false")
    return value


def _true(value: Any) -> bool:
    if value is not True:
        raise ValueError("is not true")
    return True


def _at_most(most: int) -> Check:
    def check(value: Any) -> int:
        if schema.whole_number(value) > most:
            raise ValueError(f"is more than {most}")
        return int(value)

    return check


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError("is not a finite number")
    return float(value)


def _list_of(check: Check, most: int = MAX_SITES) -> Callable[[Any], list[Any]]:
    def checked(value: Any) -> list[Any]:
        if not isinstance(value, list) or len(value) > most:
            raise ValueError(f"is not a list of at most {most}")
        return [check(each) for each in value]

    return checked


def _by_name(check: Check) -> Check:
    def checked(value: Any) -> Row:
        found = schema.mapping(value)
        return {schema.label(name): check(each) for name, each in found.items()}

    return checked


def _sentence(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError("is not a text")
    return schema.sentence(value, MAX_MESSAGE_CHARS)


def _sentences(value: Any) -> list[str]:
    return _list_of(_sentence, MAX_MESSAGES)(value)


def _progress(value: Any) -> Row | None:
    if value is None:
        return None
    counts = dict.fromkeys(("round", "rounds", "clients_done", "tokens"), schema.whole_number)
    return schema.read(value, {**counts, "loss": _number, "seconds": _number})


def _outcome(value: Any) -> Row | None:
    if value is None:
        return None
    if isinstance(value, dict) and "finished" in value:
        return schema.read(value, {"finished": _true})
    return schema.read(value, {"error": _sentence, "kind": schema.label})


def _base64(value: Any) -> bytes:
    if not isinstance(value, str) or len(value) > 4 * (CHUNK_BYTES // 3 + 1):
        raise ValueError(f"is not a text of at most {CHUNK_BYTES} bytes in base64")
    try:
        return base64.b64decode(value, validate=True)
    except binascii.Error as error:
        raise ValueError("is not base64") from error


# a row ------------------------------------------------------------------------------------------------------


def _finite_or_none(value: Any) -> float | None:
    """A number, or None if it is not finite, as in the log (such as the gap of updates that cancel)."""
    return None if value is None or value in (math.inf, -math.inf) or value != value else _number(value)


def _budget(value: Any) -> Row:
    checks = {"epsilon": _finite_or_none, "delta": _number, "again": _at_most(MAX_ROUND)}
    return _present_fields(value, checks, needed=("epsilon", "delta"))


_BY_NAME = _by_name(_finite_or_none)
_HELDOUT: Mapping[str, Check] = {
    "loss": _finite_or_none,
    "category": _BY_NAME,
    "client": _BY_NAME,
    "left_out": _by_name(_sentence),
}
_ROW: Mapping[str, Check] = {
    "cohort": _list_of(schema.label),
    "weights": _BY_NAME,
    "summed": _list_of(schema.label),
    "capped": _list_of(schema.label),
    "loss": _finite_or_none,
    "losses": _BY_NAME,
    "cosines": _BY_NAME,
    "failures": _by_name(_sentence),
    "late": _list_of(schema.label),
    "dropped": _list_of(schema.label),
    "carried": _by_name(schema.whole_number),
    "bytes_down": schema.whole_number,
    "bytes_up": schema.whole_number,
    "examples": schema.whole_number,
    "steps": schema.whole_number,
    "tokens": lambda value: _numbers(value, ("seen", "trained")),
    "heldout": lambda value: _present_fields(value, _HELDOUT),
    "taken": _by_name(schema.whole_number),
    "ranks": _by_name(schema.whole_number),
    "coverage": _BY_NAME,
    "seconds": lambda value: _numbers(value, ("round", "tuning")),
    **dict.fromkeys(ledger.UNITS, _budget),
}


FIGURE = (int, float, type(None))
_ROUND_KEYS = (
    *("cohort", "weights", "loss", "losses", "failures", "bytes_down", "bytes_up", "examples"),
    *("steps", "tokens", "seconds"),
)
"""Keys of every row but that of round 0."""


def _numbers(value: Any, needed: Sequence[str]) -> Row:
    found: Row = _BY_NAME(value)
    for name in needed:
        if found.get(name) is None:
            raise ValueError(f"has no {name}")
    return found


def _check_rows(value: Any, first: int, last: int) -> list[Row]:
    rows = [_check_row(each, last) for each in _list_of(schema.mapping, MAX_ROWS_PER_ANSWER)(value)]
    for earlier, row in zip([{"round": first - 1}, *rows], rows, strict=False):
        if row["round"] <= earlier["round"]:
            raise ValueError(f"has round {row['round']} out of order")
    return rows


def _check_row(value: Row, last: int) -> Row:
    if len(json.dumps(value)) > MAX_ROW_CHARS:
        raise ValueError(f"has a row of more than {MAX_ROW_CHARS} characters")
    try:
        trained = () if "privacy" in value else _ROUND_KEYS  # noise hides who took part
        needed = ("round", *(trained if value.get("round") else ()))
        checks = {"round": _at_most(last), **_ROW}
        # a number under another name comes from an algorithm's observer
        found = {name for name, each in value.items() if name not in checks and type(each) in FIGURE}
        rest = {name: each for name, each in value.items() if name not in found}
        return {
            **_present_fields(rest, checks, needed=needed),
            **_BY_NAME({name: value[name] for name in found}),
        }
    except WireError as error:
        raise ValueError(f"has an invalid row ({error})") from error


def _present_fields(value: Any, checks: Mapping[str, Check], needed: Sequence[str] = ()) -> Row:
    """The fields that are present, each as its check returns it; WireError if a needed one is missing."""
    found = schema.mapping(value)
    known = {name: check for name, check in checks.items() if name in found or name in needed}
    return schema.read(found, known)
