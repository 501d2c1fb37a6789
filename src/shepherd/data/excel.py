"""Rows of Excel workbooks. Only this file imports `openpyxl`."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from datetime import date, datetime, time
from io import BytesIO
from pathlib import Path
from typing import Any

from shepherd.data import packed
from shepherd.data.form import AUTO, Form
from shepherd.data.tabular import Placed, named
from shepherd.errors import DataError
from shepherd.version import install


def excel_rows(path: Path, form: Form) -> Iterator[Placed]:
    """Rows of a workbook's sheet; its first row that is not empty is the header.

    Cells are read as text, as from a CSV file. A formula counts as its value when the workbook was saved.

    Raises:
        DataError: openpyxl is not installed, the file is no workbook, or it has several sheets and
            `form.sheet` names none.
    """
    try:
        from openpyxl import load_workbook
    except ImportError as error:
        raise DataError(
            f"reading {path} needs the package openpyxl, which is not installed; run"
            f" {install('excel')}, or save the sheet as CSV"
        ) from error
    try:
        with warnings.catch_warnings(action="ignore"):  # of styles and extensions that are not read
            values = load_workbook(_source(path), read_only=True, data_only=True, keep_links=False)
            formulas = load_workbook(_source(path), keep_links=False)  # merged cells are known only here
            sheets = {
                sheet.title: _cells(sheet, formulas[sheet.title], f"{path}, sheet {sheet.title}")
                for sheet in values.worksheets
            }
            values.close()
            formulas.close()
    except DataError:
        raise
    except Exception as error:  # each fault of a file has one of its own
        raise DataError(
            f"{path} is not an Excel workbook ({error or type(error).__name__}); save it as .xlsx or as CSV"
        ) from error
    name = _chosen(sheets, form, path)
    width = max(map(len, sheets[name].values()), default=0)
    table = (
        (f"{path}, sheet {name}, row {number}", [*cells, *[""] * (width - len(cells))])
        for number, cells in sheets[name].items()
    )
    return named(table, form, path, "its columns")


def _cells(sheet: Any, formulas: Any, where: str) -> dict[int, list[str]]:
    """Rows that are not empty, by their number."""
    found = {}
    sheet.reset_dimensions()  # some programs write them wrong
    for number, cells in enumerate(sheet.values, 1):
        written = next(formulas.iter_rows(number, number, 1, max(1, len(cells)), values_only=True))
        for column, (cell, formula) in enumerate(zip(cells, written, strict=False), 1):
            if cell is None and formula is not None:
                raise DataError(
                    f"{where}, row {number}, column {column} is a formula without its value; open the"
                    " workbook in Excel or LibreOffice and save it"
                )
        texts = [_text(cell) for cell in cells]
        if any(text.strip() for text in texts):
            found[number] = texts
    for area in formulas.merged_cells.ranges:
        _fill(found, area.min_row, area.max_row, area.min_col - 1)
    return found


def _fill(found: dict[int, list[str]], first: int, last: int, column: int) -> None:
    """Give a cell that is merged over several rows to each of those that hold anything else."""
    text = found[first][column] if column < len(found.get(first, ())) else ""
    for number in range(first + 1, last + 1):
        if text and number in found:
            cells = found[number] + [""] * (column + 1 - len(found[number]))
            found[number] = [*cells[:column], text, *cells[column + 1 :]]


def _source(path: Path) -> Any:
    return BytesIO(packed.read(path)) if packed.is_packed(path) else path


def _chosen(sheets: dict[str, dict[int, list[str]]], form: Form, path: Path) -> str:
    filled = [name for name, rows in sheets.items() if rows]
    if form.sheet != AUTO:
        if form.sheet not in sheets:
            raise DataError(f"{path} has no sheet {form.sheet}; set data.sheet to one of {', '.join(sheets)}")
        return form.sheet
    if len(filled) > 1:
        raise DataError(f"{path} has several sheets; set data.sheet to one of {', '.join(filled)}")
    return filled[0] if filled else next(iter(sheets))


def _text(cell: Any) -> str:
    match cell:
        case None:
            return ""
        case bool():
            return str(cell).upper()
        case float() if cell.is_integer():
            return str(int(cell))
        case datetime() if cell.time() == time():
            return cell.date().isoformat()
        case datetime():
            return cell.isoformat(" ")
        case date() | time():
            return cell.isoformat()
    return str(cell)
