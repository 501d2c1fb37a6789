"""Rows with named fields from tables of cells: CSV, TSV, and the sheets of a workbook."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from shepherd.data import sniff
from shepherd.data.fields import plain_name
from shepherd.data.form import AUTO, Form
from shepherd.errors import BadRow, DataError

Placed = tuple[str, Any]
"""A row's place, and the row; or a BadRow that says why it cannot be read."""

_SEP = re.compile(r'"?sep ?= ?(.)"?(\r\n?|\n)', re.IGNORECASE)
"""First line that declares the delimiter, as Excel writes it."""
_LINE = re.compile(r"[^\r\n]*(?:\r\n?|\n)|[^\r\n]+")
"""A line: it ends at a newline, and not at U+2028 and the like, where `str.splitlines` would cut it."""


def csv_rows(path: Path, form: Form) -> Iterator[Placed]:
    """Rows of a CSV or TSV file; empty rows are skipped.

    Raises:
        DataError: the file is no text, its delimiter is ambiguous, or its header is none.
    """
    text = sniff.text(path, form)
    said = _SEP.match(text)
    text = text[said.end() :] if said else text
    mark = said[1] if said and form.delimiter == AUTO else sniff.delimiter(text, path, form)
    name = sniff.NAMES.get(mark, f"the delimiter {mark}")
    with sniff.wide_cells():
        lines = (line[0] for line in _LINE.finditer(text))
        reader = csv.reader(lines, delimiter=mark, strict=True, **_habits(text, mark))
        yield from named(_cells(reader, path, 1 if said else 0), form, path, f"its {name} or quotes")


def _habits(text: str, mark: str) -> dict[str, Any]:
    """How the first row is written, as options of `csv`: spaces after each delimiter, quotes that are single.

    Both would else become part of the texts.
    """
    cells = text.lstrip().partition("\n")[0].rstrip().split(mark)
    spaced = len(cells) > 1 and all(cell[:1] == " " and cell.strip() for cell in cells[1:])
    bare = [cell.strip() for cell in cells]
    single = all(len(cell) > 2 and cell[0] == cell[-1] == "'" for cell in bare)
    return {"skipinitialspace": spaced, **({"quotechar": "'"} if single else {})}


def named(
    table: Iterator[tuple[str, Sequence[str]]], form: Form, path: Path, causes: str
) -> Iterator[Placed]:
    """Name the cells of each row: by `form.columns`, else by the first row.

    An empty name in the first row becomes "Unnamed: 0", as pandas writes it, so that its column is not lost.

    Args:
        causes: what may be wrong where a row has more cells or fewer than the header.

    Raises:
        DataError: the header has a repeated name, or `form.columns` repeats a header of the file.
    """
    names = list(form.columns)
    for where, cells in table:
        if not any(cell.strip() for cell in cells):
            continue
        elif not names:
            names = _header(cells, where)
        elif list(cells) == names and form.columns:
            raise DataError(
                f"{where} has the names of data.columns, which are for a file without a header; remove"
                " that key"
            )
        else:
            yield where, _row(cells, names, where, causes)


def _header(cells: Sequence[str], where: str) -> list[str]:
    while not cells[-1].strip():  # a delimiter at the end of each line
        cells = cells[:-1]
    names = [name if name.strip() else f"Unnamed: {place}" for place, name in enumerate(cells)]
    if len(set(names)) < len(names):
        raise DataError(f"{where} has a repeated column name; name each column once")
    return names


def _row(cells: Sequence[str], names: list[str], where: str, causes: str) -> dict[str, str] | BadRow:
    if len(cells) < len(names) or any(cell.strip() for cell in cells[len(names) :]):
        if len(names) == 1:
            causes += ", or remove that header if it is a title or a remark above the columns' names"
        return BadRow(f"{where} has {len(cells)} cells, the header {len(names)}; fix {causes}")
    if list(map(plain_name, cells[: len(names)])) == list(map(plain_name, names)):
        return BadRow(f"{where} repeats the names of the columns; remove it")
    return dict(zip(names, cells[: len(names)], strict=True))


def _cells(reader: Any, path: Path, before: int) -> Iterator[tuple[str, Sequence[str]]]:
    """Rows of cells, each with its first line; `before` lines precede them in the file."""
    while True:
        where = f"{path}, line {reader.line_num + 1 + before}"
        try:
            cells = next(reader, None)
        except csv.Error as error:
            raise DataError(f"the row that starts at {where} is not CSV ({error}); fix its quotes") from error
        if cells is None:
            return
        yield where, cells
