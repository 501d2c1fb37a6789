"""Rows in memory: a list, a DataFrame, a `datasets.Dataset`, columns, or any of these by client."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain
from typing import Any

from shepherd.data.files import Part, records
from shepherd.data.form import Form
from shepherd.data.json_rows import is_chat, untangled
from shepherd.data.tabular import Placed
from shepherd.errors import DataError

WHERE = "the rows"


def memory_parts(rows: Any, form: Form, *, by_client: bool) -> list[Part]:
    """Rows by client where `rows` maps clients' names to their rows, else all rows as one part.

    Raises:
        DataError: there is no row, or `by_client` is set and `rows` is one table.
    """
    rows = _chosen(rows, form)
    if _is_by_client(rows):
        return [
            Part(client=str(client), rows=_placed(own, f"{WHERE} of {client}"))
            for client, own in rows.items()
        ]
    if by_client:
        raise DataError(
            'split.by is "ready-made" but the rows are one table; give a dict from clients\' names to'
            " their rows"
        )
    return [Part(client="", rows=_placed(rows, WHERE))]


def _chosen(rows: Any, form: Form) -> Any:
    """The part of a `datasets.DatasetDict` that the run file names; any other rows as they are."""
    if not isinstance(rows, Mapping) or _library(rows) != "datasets":
        return rows
    if form.part not in rows:
        raise DataError(f"the rows have no part {form.part}; set data.part to one of {', '.join(rows)}")
    return rows[form.part]


def _is_by_client(rows: Any) -> bool:
    """Whether `rows` is a mapping to tables, and not one of columns."""
    if not isinstance(rows, Mapping):
        return False
    filled = [own for own in rows.values() if not (isinstance(own, list) and not own)]
    return bool(filled) and all(map(_is_table, filled))


def _is_table(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return bool(value) and all(isinstance(row, Mapping) for row in value) and not is_chat(list(value))
    if isinstance(value, Mapping):
        return bool(value) and all(map(_is_column, value.values()))
    return hasattr(value, "columns") or _library(value) in ("datasets", "pyarrow")


def _is_column(value: Any) -> bool:
    return isinstance(value, Iterable) and not isinstance(value, str | bytes | Mapping)


def _library(value: Any) -> str:
    return type(value).__module__.partition(".")[0]


def _placed(rows: Any, where: str) -> Iterator[Placed]:
    found = _rows(rows, where)
    first = next(found, None)
    if first is None:
        raise DataError(f"{where} are empty; give at least one row")
    return chain([first], found)


def _rows(rows: Any, where: str) -> Iterator[Placed]:
    match _library(rows):
        case "datasets" if hasattr(rows, "features"):
            return records(rows, where)
        case "pandas" if hasattr(rows, "to_dict"):
            return _numbered(_of_frame(rows, where), where)
        case "polars" if hasattr(rows, "to_dicts"):
            return _numbered(rows.to_dicts(), where)
        case "pyarrow" if hasattr(rows, "to_pylist"):
            return _numbered(rows.to_pylist(), where)
    if isinstance(rows, str | bytes | os.PathLike):
        raise DataError(f"{where} are a path or a text; set data.source to a path, or give a list of rows")
    if isinstance(rows, Mapping):
        return _numbered(_of_columns(rows, where), where)
    if not isinstance(rows, Iterable):
        raise DataError(
            f"{where} are a {type(rows).__name__}; give a list of dicts, a DataFrame or a Dataset"
        )
    return _numbered(rows, where)


def _numbered(rows: Iterable[Any], where: str) -> Iterator[Placed]:
    return ((f"{where}, record {number}", untangled(_plain(row))) for number, row in enumerate(rows, 1))


def _of_columns(columns: Mapping[str, Any], where: str) -> list[dict[str, Any]]:
    cells = {name: list(column) for name, column in columns.items() if _is_column(column)}
    if len(cells) < len(columns) or len(set(map(len, cells.values()))) > 1:
        raise DataError(
            f"{where} are a dict, but neither columns of one length nor rows by client; give a list of dicts"
        )
    return [dict(zip(cells, row, strict=True)) for row in zip(*cells.values(), strict=True)]


def _of_frame(frame: Any, where: str) -> list[dict[str, Any]]:
    """Rows of a DataFrame, with nulls as None; a named index is a column."""
    if any(name is not None for name in frame.index.names):
        frame = frame.reset_index()
    if not frame.columns.is_unique:
        raise DataError(f"{where} have two columns of the same name; name each column once")
    frame = frame.set_axis([str(name) for name in frame.columns], axis=1)
    found: list[dict[str, Any]] = frame.astype(object).where(frame.notna(), None).to_dict("records")
    return found


def _plain(value: Any) -> Any:
    """The value with numpy's values, at any depth, as Python's own."""
    if isinstance(value, Mapping):
        return {name: _plain(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    return _plain(value.tolist()) if _library(value) == "numpy" else value
