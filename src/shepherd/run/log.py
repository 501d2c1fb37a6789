"""The log of a run, `rounds.jsonl`: one line per finished round, exactly once even after a crash."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from shepherd.errors import FolderError
from shepherd.io import private
from shepherd.io.atomic import disk_errors, write_atomic

LOG = "rounds.jsonl"
Row = dict[str, Any]


def append_row(path: Path, row: Mapping[str, Any]) -> None:
    """Add one finished round to the log in a folder; it is on the disk when this returns.

    Raises:
        FolderError: the disk is full or the folder was removed; the log then holds no part of the row.
    """
    with disk_errors(path), open(path / LOG, "ab", buffering=0, opener=private.owner_only) as log:
        before = os.fstat(log.fileno()).st_size
        try:
            _write_all(log.fileno(), _line(row))
        except BaseException:  # also on an interrupt
            os.ftruncate(log.fileno(), before)
            raise
        os.fsync(log.fileno())


def reconciled(path: Path, upto_round: int, row: Mapping[str, Any] | None = None) -> list[Row]:
    """Make the log in a folder agree with the checkpoint of round `upto_round`, and return its rows.

    An unfinished last line and the rows after the checkpoint are removed, since those rounds are run again;
    `row`, which the checkpoint holds, is added if the log lacks it. So each finished round is there exactly
    once, whether the log or the checkpoint was written last before the process died.

    Raises:
        FolderError: a line inside the log is unreadable, or the disk is full.
    """
    with disk_errors(path):
        old = (path / LOG).read_bytes() if (path / LOG).exists() else b""
        rows = agreeing(_parse_rows(old, path / LOG), upto_round, row)
        new = b"".join(_line(r) for r in rows)
        if new != old:
            write_atomic(path / LOG, new)
        return rows


def agreeing(rows: Sequence[Row], upto_round: int, row: Mapping[str, Any] | None = None) -> list[Row]:
    """The rows that `reconciled` leaves; nothing is written."""
    kept = {each["round"]: each for each in reversed(rows) if each["round"] <= upto_round}
    if row is not None and row["round"] not in kept:
        kept[row["round"]] = json.loads(_line(row))
    return [kept[number] for number in sorted(kept)]


def read_rows(path: str | Path) -> list[Row]:
    """Read the rows of a run's log, without a last line that is still being written.

    Raises:
        FolderError: a line inside the log is unreadable.
    """
    log = Path(path) / LOG
    with disk_errors(Path(path)):
        return _parse_rows(log.read_bytes(), log) if log.exists() else []


def hides_amounts(row: Mapping[str, Any]) -> bool:
    """Whether a row does not say how much was trained, since noise or a sum of the clients' updates hides it.

    It has no count then, or 0, which is none.
    """
    return "examples" not in row or "example_privacy" in row or "summed" in row


def _line(row: Mapping[str, Any]) -> bytes:
    return (json.dumps(_json_value(row), allow_nan=False) + "\n").encode()


def _json_value(value: Any) -> Any:
    """A value in JSON's types: numpy scalars as numbers, and null for a number that is not finite."""
    if isinstance(value, Mapping):
        return {str(key): _json_value(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_json_value(item) for item in value]
    value = value.item() if hasattr(value, "item") else value
    return None if isinstance(value, float) and not abs(value) < float("inf") else value


def _parse_rows(content: bytes, log: Path) -> list[Row]:
    *lines, _unfinished = content.split(b"\n")  # what follows the last newline was never finished
    return [_parse_line(line, number, log) for number, line in enumerate(lines, 1)]


def _parse_line(line: bytes, number: int, log: Path) -> Row:
    try:
        row = json.loads(line)
        int(row["round"])
    except (ValueError, TypeError, KeyError) as error:
        raise FolderError(
            f"line {number} of {log} is not a round; delete that line, then resume the run"
        ) from error
    return dict(row)


def _write_all(handle: int, data: bytes) -> None:
    while data:
        data = data[os.write(handle, data) :]
