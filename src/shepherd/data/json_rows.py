"""Rows of JSON files, whatever layout they have and whatever their extension says.

Layouts: one object a line; a list; a list or columns under a key; one list for each column; rows by name.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from functools import cache
from io import TextIOWrapper
from pathlib import Path
from typing import Any

from shepherd.data import packed, sniff
from shepherd.data.columns import NAMES
from shepherd.data.fields import CHATS, from_cell, is_filled, plain_name
from shepherd.data.form import USUAL, Form
from shepherd.data.tabular import Placed
from shepherd.errors import BadRow, DataError
from shepherd.io.decoding import UTF8

log = logging.getLogger(__name__)
KNOWN = {word for part in ("instruction", "context", "response") for word in NAMES[part][0].split()}
KNOWN |= {"messages", "conversations"}
USUAL_KEYS = {"data", "rows", "records", "examples", "instances", "items", "samples", "train", "training"}
"""Usual keys of the list of rows in a file."""
TURN = ({"role", "content"}, {"from", "value"})
MAX_LINES_TRIED = 1000
_BLANK = re.compile(r"\s*")


def json_rows(path: Path, form: Form) -> Iterator[Placed]:
    """Rows of a JSON or JSONL file; a row that is a list gets its field names from `form.columns`.

    Raises:
        DataError: the file is no text, is not JSON as a whole, or has a layout that cannot be read.
    """
    names = form.columns
    for where, row in _rows(path, form):
        is_cells = isinstance(row, list) and len(row) == len(names) > 0
        yield where, dict(zip(names, row, strict=True)) if is_cells else row


def _rows(path: Path, form: Form) -> Iterator[Placed]:
    first, more = _first_line(path, form)
    if not first.strip():
        return iter(())
    if not more and first.lstrip().startswith("["):  # never made as a whole, since it may be all the rows
        return _array(sniff.text(path, form), path)
    whole = None
    with suppress(ValueError, RecursionError):
        whole = _loads(_without_comma(first))
    if isinstance(whole, list) and all(map(_is_record, whole)):
        return _array(sniff.text(path, form), path)
    if isinstance(whole, Mapping) and not more:
        return _of_object(whole, form, path)
    if whole is None and (rows := _multi_line_rows(path, form)) is not None:
        return rows
    return _lines(path, form)


def holds_json(path: Path) -> bool:
    """Whether the first line of a text file is an object, or begins a list or an object of JSON."""
    try:
        first = _first_line(path, USUAL)[0].strip()
    except DataError:
        return False
    return first in ("{", "[", "[{") or (first[:1] in ("{", "[") and _is_json(_without_comma(first)))


def _is_json(text: str) -> bool:
    with suppress(ValueError, RecursionError):
        return isinstance(_ANY.decode(text), Mapping | list)
    return False


def _first_line(path: Path, form: Form) -> tuple[str, bool]:
    """First line that is not blank, and whether there is another one."""
    encoding = sniff.likely(path, form)
    with TextIOWrapper(packed.opened(path), encoding=encoding, errors="replace", newline="\n") as file:
        filled = (line.lstrip("\ufeff") for line in file if line.strip("\ufeff \t\r\n"))
        return next(filled, ""), next(filled, None) is not None


def _lines(path: Path, form: Form) -> Iterator[Placed]:
    """Rows of a file with one value a line; a BadRow for each broken line."""
    encoding = sniff.likely(path, form)
    if encoding != UTF8:
        lines: Iterator[bytes] = (line.encode() for line in sniff.text(path, form).split("\n"))
        yield from _parsed_lines(lines, path)
        return
    with packed.opened(path) as file:
        yield from _parsed_lines(iter(file), path)


def _parsed_lines(lines: Iterator[bytes], path: Path) -> Iterator[Placed]:
    for number, raw in enumerate(lines, 1):
        where = f"{path}, line {number}"
        if raw.strip(b"\xef\xbb\xbf \t\r\n"):
            try:
                yield where, _loads(_without_comma(raw.decode("utf8").lstrip("\ufeff")))
            except UnicodeDecodeError:
                yield where, BadRow(f"{where} is not UTF-8; save the file as UTF-8, or set data.encoding")
            except (ValueError, RecursionError) as error:
                yield where, _bad(where, error, "fix that line")


def _multi_line_rows(path: Path, form: Form) -> Iterator[Placed] | None:
    """Rows of a list or of objects over several lines; None where the first line alone is broken."""
    text = sniff.text(path, form)
    start = _next(text, 0)
    if text[start] == "[":
        return _array(text, path)
    if text[start] != "{":
        return None
    try:
        whole, end = _DECODER.raw_decode(text, start)
    except json.JSONDecodeError as error:
        if error.lineno == 1 + text.count("\n", 0, start) or _is_by_lines(text[start:]):
            return None
        raise DataError(f"{path}, line {error.lineno} is not JSON ({error.msg}); fix it") from error
    except (ValueError, RecursionError) as error:
        return _unread_first(text, start, path, error)
    if _next(text, end) == len(text):
        return _of_object(whole, form, path)
    return _sequence(text, start, path) if text[_next(text, end)] == "{" else None


def _unread_first(text: str, start: int, path: Path, error: Exception) -> Iterator[Placed] | None:
    """Rows of a file whose first object is whole and cannot be read, as for a key that is repeated."""
    after = ""
    with suppress(ValueError, RecursionError):
        after = text[_ANY.raw_decode(text, start)[1] :].lstrip(" \t")[:1]
    if after != "{" and _is_by_lines(text[start:]):
        return None
    if after not in ("{", ",", "\r", "\n"):
        raise DataError(f"{path} cannot be read as JSON ({error}); fix it") from error
    return _sequence(text, start, path)


def _without_comma(line: str) -> str:
    """A line of JSON Lines without the comma that some programs leave after each object."""
    bare = line.rstrip()
    return bare[:-1] if bare.endswith("},") else line


def _is_by_lines(text: str) -> bool:
    """Whether a text with a broken first line has one object a line: no other line, or one that is whole."""
    _, *others = (line for line in text.splitlines() if line.strip())
    for line in others[:MAX_LINES_TRIED]:
        with suppress(ValueError, RecursionError):
            if isinstance(_loads(line), Mapping):
                return True
    return not others


def _sequence(text: str, at: int, path: Path) -> Iterator[Placed]:
    """Rows of objects one after another, each over several lines, as jq writes them."""
    line, counted = 1, 0
    while at < len(text):
        line, counted = line + text.count("\n", counted, at), at
        where = f"{path}, line {line}"
        record, at = _record(text, at, where, f"the object at {where}")
        yield where, record
        at = _next(text, at)
        at = _next(text, at + 1) if text[at : at + 1] == "," else at


def _array(text: str, path: Path) -> Iterator[Placed]:
    """Records of a JSON array one by one, so that each has its line."""
    start = text.index("[")
    at, line, counted, number = _next(text, start + 1), 1, 0, 0
    while text[at : at + 1] != "]":
        line, counted, number = line + text.count("\n", counted, at), at, number + 1
        where = f"{path}, record {number} (line {line})"
        record, at = _record(text, at, where, where)
        yield where, record
        at = _next(text, at)
        if text[at : at + 1] not in (",", "]"):
            raise DataError(f"{where} has no comma or ] after it; fix it")
        at = _next(text, at + 1) if text[at] == "," else at
    if _next(text, at + 1) < len(text):
        raise DataError(f"{path} has more text after the ] of its list; put all its records into one list")


def _record(text: str, at: int, where: str, what: str) -> tuple[Any, int]:
    """A record and where it ends; a BadRow where its text is whole JSON, but something of it would be lost.

    Raises:
        DataError: it is not JSON, so that nobody knows where the next one begins.
    """
    try:
        return _DECODER.raw_decode(text, at)
    except (ValueError, RecursionError) as error:
        with suppress(ValueError, RecursionError):
            return _bad(where, error, "fix it"), _ANY.raw_decode(text, at)[1]
        raise DataError(f"{what} is not JSON ({error}); fix it") from error


def _bad(where: str, error: Exception, fix: str) -> BadRow:
    reason = "" if not isinstance(error, _RepeatedKeyError) else "the row has two values for one key"
    return BadRow(f"{where} is not JSON ({error}); {fix}", reason)


def _next(text: str, at: int) -> int:
    """Index of the first character from `at` on that is not white space."""
    found = _BLANK.match(text, at)
    return found.end() if found else len(text)


def _object_of(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object as a dict; ValueError for a key with two values, one of which would be lost."""
    found = dict(pairs)
    if len(found) < len(pairs):
        for key, value in pairs:
            if found[key] != value or type(found[key]) is not type(value):
                raise _RepeatedKeyError(f"key {key[:40]!r} is repeated")
    return found


class _RepeatedKeyError(ValueError):
    """An object has two values for one key, of which only one could be read."""


_DECODER = json.JSONDecoder(object_pairs_hook=_object_of)
_ANY = json.JSONDecoder(parse_int=str)
"""A decoder that finds the end of any JSON value, with repeated keys and integers of any length."""


def _loads(text: str) -> Any:
    return json.loads(text, object_pairs_hook=_object_of)


# ---- one object


def _of_object(whole: Mapping[str, Any], form: Form, path: Path) -> Iterator[Placed]:
    """Rows of a file that is one object: the object itself, or the rows in it."""
    rows = table_rows(whole, form, str(path))
    return iter([(f"{path}, line 1", whole)] if rows is None else rows)


def table_rows(whole: Mapping[str, Any], form: Form, where: str) -> list[Placed] | None:
    """Rows in one object, under a key, by columns, or by name; None where the object is one row.

    Raises:
        DataError: the object holds several tables, or it is unclear what is a row and what a column.
    """
    known = KNOWN | {name.lower() for name in form.names}
    chats = {plain_name(name) for name in (*CHATS, *form.chats)}
    if any(
        key.lower() in known and (not _is_part(value) or (plain_name(key) in chats and _is_one_chat(value)))
        for key, value in whole.items()
    ):
        return None
    if {"columns", "data"} <= whole.keys() and _is_grid(whole["columns"], whole["data"]):
        _warn_of_unread(whole, {"columns", "data", "index"}, where)
        return _placed([dict(zip(whole["columns"], row, strict=True)) for row in whole["data"]], where)
    if keys := _holds(whole, known):
        return _under_a_key(whole, keys, form, where)
    if whole and all(isinstance(value, list) for value in whole.values()):
        return _by_lists(whole, known, where)
    if whole and all(isinstance(value, Mapping) for value in whole.values()):
        return _by_names(whole, known, form, where)
    return None


def _is_part(value: Any) -> bool:
    """Whether a value is a column or a table, and not a text or a chat of one row."""
    return isinstance(value, Mapping | list) and not is_chat(value)


def _is_one_chat(value: Any) -> bool:
    """Whether the value of a field of chats is one chat, as far as it can be read, and no column of chats."""
    filled = [from_cell(each) for each in value if is_filled(each)] if isinstance(value, list) else []
    return bool(filled) and not any(isinstance(each, list) or _is_struct(each) for each in filled)


def is_chat(value: Any) -> bool:
    """Whether `value` is a list of turns, or an object of lists of their fields."""
    if isinstance(value, Mapping):
        return any(names <= value.keys() for names in TURN)
    return bool(value) and all(isinstance(turn, Mapping) and {"role", "from"} & turn.keys() for turn in value)


def _is_record(value: Any) -> bool:
    return isinstance(value, Mapping) and not {"role", "from"} & value.keys()


def _is_grid(columns: Any, rows: Any) -> bool:
    """Whether these are names and rows of as many cells, as pandas writes with orient="split"."""
    named = isinstance(columns, list) and all(isinstance(name, str) for name in columns)
    lists = isinstance(rows, list) and all(isinstance(row, list) for row in rows)
    return named and lists and all(len(row) == len(columns) for row in rows)


def _holds(whole: Mapping[str, Any], known: set[str]) -> list[str]:
    """Keys that hold rows: lists of objects that have known fields, or whose key is a usual one."""
    return [
        key
        for key, value in whole.items()
        if isinstance(value, list)
        and value
        and all(map(_is_record, value))
        and (key.lower() in USUAL_KEYS or any(known & {str(name).lower() for name in row} for row in value))
    ]


def _under_a_key(whole: Mapping[str, Any], keys: list[str], form: Form, where: str) -> list[Placed]:
    chosen = form.part if form.part in keys else keys[0]
    if form.part not in keys and len(keys) > 1:
        raise DataError(
            f"{where} has rows under each of the keys {_some(keys)}; set data.part to one of them, or write"
            " a file for each"
        )
    _warn_of_unread(whole, {chosen}, where)
    return _placed(whole[chosen], f"{where}, {chosen}")


def _by_lists(whole: Mapping[str, Any], known: set[str], where: str) -> list[Placed] | None:
    """Rows of an object with one list for each column; None where no column is known."""
    if not any(key.lower() in known for key in whole):
        return None
    if len({len(value) for value in whole.values()}) > 1:
        raise DataError(f"{where} has a list for each column, and they are not equally long; {AS_LINES}")
    return _placed(
        [dict(zip(whole, cells, strict=True)) for cells in zip(*whole.values(), strict=True)], where
    )


def _by_names(whole: Mapping[str, Any], known: set[str], form: Form, where: str) -> list[Placed] | None:
    """Rows of an object of objects: columns by row, or rows by name."""
    inner = list(dict.fromkeys(str(key) for value in whole.values() for key in value))
    outer_known = any(key.lower() in known for key in whole)
    inner_known = any(key.lower() in known for key in inner)
    if outer_known and not inner_known:
        if any(value.keys() != next(iter(whole.values())).keys() for value in whole.values()):
            raise DataError(f"{where} has an object for each column, not all with the same rows; {AS_LINES}")
        return _placed([{name: whole[name][row] for name in whole} for row in inner], where)
    if form.part in whole and not outer_known:
        _warn_of_unread(whole, {form.part}, where)
        return table_rows(whole[form.part], form, f"{where}, {form.part}")
    if inner_known and not outer_known and not any(map(is_chat, whole.values())):
        if all(
            isinstance(cell, list) and not is_chat(cell)
            for value in whole.values()
            for cell in value.values()
        ):
            raise DataError(f"{where} has columns under each of the keys {_some(whole)}; {AS_LINES}")
        return [(f"{where}, row {str(name)[:40]!r}", row) for name, row in whole.items()]
    raise DataError(
        f"{where} is JSON, but neither a list of objects nor one object a line, and it is unclear which of"
        f" its keys are fields; {AS_LINES}"
    )


AS_LINES = 'write it again as one object a line, with pandas by to_json(path, orient="records", lines=True)'


def _placed(rows: list[Any], where: str) -> list[Placed]:
    return [(f"{where}, record {number}", row) for number, row in enumerate(rows, 1)]


def _some(keys: Any) -> str:
    names = [repr(str(key)[:40]) for key in keys]  # a site's log leaves out what is in quotation marks
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")


def _warn_of_unread(whole: Mapping[str, Any], read: set[str], where: str) -> None:
    if left := [key for key in whole if key not in read]:
        _warn(f"{where}: these keys hold no rows and are not read: {_some(left)}")


@cache  # a file is read more than once
def _warn(sentence: str) -> None:
    log.warning("%s", sentence)


# ---- one row


def untangled(row: Any) -> Any:
    """The row with each chat that is an object of lists turned into a list of turns.

    A row that is nothing but a list of turns becomes one with the field `messages`.

    >>> untangled({"messages": {"role": ["user", "assistant"], "content": ["Hello", "Hi"]}})
    {'messages': [{'role': 'user', 'content': 'Hello'}, {'role': 'assistant', 'content': 'Hi'}]}
    """
    if isinstance(row, list) and is_chat(row):
        return {CHATS[0]: row}
    if not isinstance(row, Mapping) or not any(map(_is_struct, row.values())):
        return row
    return {name: _turns(value) if _is_struct(value) else value for name, value in row.items()}


def _is_struct(value: Any) -> bool:
    if not isinstance(value, Mapping) or not any(names <= value.keys() for names in TURN):
        return False
    filled = [each for each in value.values() if each is not None]
    return all(isinstance(each, list) for each in filled) and len(set(map(len, filled))) == 1


def _turns(value: Mapping[str, list[Any] | None]) -> list[dict[str, Any]]:
    filled = {name: cells for name, cells in value.items() if cells is not None}
    return [dict(zip(filled, cells, strict=True)) for cells in zip(*filled.values(), strict=True)]
