"""What a job at the server tells, read as strictly as the wire's fields: the server may be in any hands.

A key missing or unknown, another type, a text or a number too large is a FederationError of one sentence. So
the run folder grows by one row a round and by checkpoints of the size that the run has, whatever is told.
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
from shepherd.silos.protocol import schema
from shepherd.silos.protocol.jobspec import MOST_SITES
from shepherd.silos.protocol.schema import Check
from shepherd.silos.server.run_status import ROWS
from shepherd.silos.server.server_run import CHUNK

Row = dict[str, Any]
MOST_ROW = 10**6
"""Characters of a row, as JSON."""
MOST_SAID = 1000
"""Sentences of a job beside its rows; what it says beyond that is not shown."""
MOST_ROUND = 10**9
MOST_SENTENCE = 20_000
"""Characters: the end of a run names several sites, each with its own sentence."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """A job's answer."""

    opened: bool
    """Whether it has begun to go through the rounds."""
    round: int
    """Finished rounds at the server."""
    count: int
    """Rows in the server's log: rounds 0 to count - 1."""
    rows: Sequence[Row]
    """Those from the asked one on, in order."""
    said: Sequence[str]
    progress: Row | None
    outcome: Row | None
    """{"finished": True}, or {"error", "kind"}."""
    present: Sequence[str]
    """The sites that are there."""


def told(answer: Any, rounds: int, rows: int = 0) -> Told:
    """A job's answer.

    Args:
        rounds: of the run; -1 where that is not known.
        rows: how many of the log were known as it was asked; earlier ones may not come.

    Raises:
        FederationError: it is not one.
    """
    most = rounds if rounds >= 0 else MOST_ROUND
    checks: Mapping[str, Check] = {
        "opened": _switch,
        "round": _at_most(most),
        "count": _at_most(most + 1),
        "rows": lambda value: _rows(value, rows, most),
        "said": _sentences,
        "progress": _progress,
        "outcome": _outcome,
        "present": _listed(schema.label),
    }
    without_state = {key: value for key, value in _table(answer).items() if key != "state"}  # see `piece`
    return Told(**_read(without_state, checks))


def piece(answer: Any, offset: int, most: int) -> tuple[bytes, int] | None:
    """A piece of a checkpoint's file from `offset` on, and the bytes of the whole; None where it is gone.

    Args:
        most: bytes of a whole file; a larger one is refused before any of it is taken.

    Raises:
        FederationError: it is not one.
    """
    state = _table(answer).get("state")
    if state is None:
        return None
    part = _read(state, {"of": _at_most(most), "data": _base64})
    if offset + len(part["data"]) > part["of"]:
        raise FederationError(_fault(f"a piece of a checkpoint goes beyond its {part['of']} bytes"))
    return part["data"], part["of"]


def _read(value: Any, checks: Mapping[str, Check]) -> Row:
    try:
        return schema.read(value, checks)
    except (WireError, ValueError, OverflowError) as error:  # of a whole number of a thousand digits
        raise FederationError(_fault(str(error))) from error


def _fault(why: str) -> str:
    return f"what the server tells of the run cannot be taken ({schema.sentence(why)}); ask whoever runs it"


def _table(value: Any) -> Row:
    try:
        return schema.mapping(value)
    except ValueError as error:
        raise FederationError(_fault(f"its answer {error}")) from error


def _switch(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError("is neither true nor false")
    return value


def _yes(value: Any) -> bool:
    if value is not True:
        raise ValueError("is not true")
    return True


def _at_most(most: int) -> Check:
    def check(value: Any) -> int:
        if schema.whole(value) > most:
            raise ValueError(f"is more than {most}")
        return int(value)

    return check


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError("is no finite number")
    return float(value)


def _listed(check: Check, most: int = MOST_SITES) -> Callable[[Any], list[Any]]:
    def checked(value: Any) -> list[Any]:
        if not isinstance(value, list) or len(value) > most:
            raise ValueError(f"is no list of at most {most}")
        return [check(each) for each in value]

    return checked


def _by_name(check: Check) -> Check:
    def checked(value: Any) -> Row:
        found = schema.mapping(value)
        return {schema.label(name): check(each) for name, each in found.items()}

    return checked


def _sentence(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError("is no sentence")
    return schema.sentence(value, MOST_SENTENCE)


def _sentences(value: Any) -> list[str]:
    return _listed(_sentence, MOST_SAID)(value)


def _progress(value: Any) -> Row | None:
    if value is None:
        return None
    counts = dict.fromkeys(("round", "rounds", "clients_done", "tokens"), schema.whole)
    return schema.read(value, {**counts, "loss": _number, "seconds": _number})


def _outcome(value: Any) -> Row | None:
    if value is None:
        return None
    if isinstance(value, dict) and "finished" in value:
        return schema.read(value, {"finished": _yes})
    return schema.read(value, {"error": _sentence, "kind": schema.label})


def _base64(value: Any) -> bytes:
    if not isinstance(value, str) or len(value) > 4 * (CHUNK // 3 + 1):
        raise ValueError(f"is no text of at most {CHUNK} bytes in base64")
    try:
        return base64.b64decode(value, validate=True)
    except binascii.Error as error:
        raise ValueError("is no base64") from error


# a row ------------------------------------------------------------------------------------------------------


def _told_number(value: Any) -> float | None:
    """As the log has it: null for a number that is not finite, such as the gap of changes that cancel."""
    return None if value is None or value in (math.inf, -math.inf) or value != value else _number(value)


_BY_NAME = _by_name(_told_number)
_HELDOUT: Mapping[str, Check] = {
    "loss": _told_number,
    "category": _BY_NAME,
    "client": _BY_NAME,
    "left_out": _by_name(_sentence),
}
_ROW: Mapping[str, Check] = {
    "cohort": _listed(schema.label),
    "weights": _BY_NAME,
    "capped": _listed(schema.label),
    "loss": _told_number,
    "losses": _BY_NAME,
    "failures": _by_name(_sentence),
    "bytes_down": schema.whole,
    "bytes_up": schema.whole,
    "examples": schema.whole,
    "steps": schema.whole,
    "tokens": lambda value: _numbers(value, ("seen", "trained")),
    "heldout": lambda value: _some(value, _HELDOUT),
    "taken": _by_name(schema.whole),
    "coverage": _BY_NAME,
    "seconds": lambda value: _numbers(value, ("round", "tuning")),
}


FIGURE = (int, float, type(None))
_OF_A_ROUND = (
    *("cohort", "weights", "loss", "losses", "failures", "bytes_down", "bytes_up", "examples"),
    *("steps", "tokens", "seconds"),
)
"""What every row but that of round 0 says."""


def _numbers(value: Any, needed: Sequence[str]) -> Row:
    found: Row = _BY_NAME(value)
    for name in needed:
        if found.get(name) is None:
            raise ValueError(f"says no {name}")
    return found


def _rows(value: Any, first: int, last: int) -> list[Row]:
    rows = [_row(each, last) for each in _listed(schema.mapping, ROWS)(value)]
    for earlier, row in zip([{"round": first - 1}, *rows], rows, strict=False):
        if row["round"] <= earlier["round"]:
            raise ValueError(f"has round {row['round']} out of its order")
    return rows


def _row(value: Row, last: int) -> Row:
    if len(json.dumps(value)) > MOST_ROW:
        raise ValueError(f"has a row of more than {MOST_ROW} characters")
    try:
        needed = ("round", *(_OF_A_ROUND if value.get("round") else ()))
        checks = {"round": _at_most(last), **_ROW}
        # a number under another name is what an algorithm's observer found
        found = {name for name, each in value.items() if name not in checks and type(each) in FIGURE}
        rest = {name: each for name, each in value.items() if name not in found}
        return {**_some(rest, checks, needed=needed), **_BY_NAME({name: value[name] for name in found})}
    except WireError as error:
        raise ValueError(f"has a row that is none ({error})") from error


def _some(value: Any, checks: Mapping[str, Check], needed: Sequence[str] = ()) -> Row:
    """The fields that are there; of each that is not needed, the value as its check gives it."""
    found = schema.mapping(value)
    known = {name: check for name, check in checks.items() if name in found or name in needed}
    return schema.read(found, known)
