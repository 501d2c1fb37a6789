"""Rows of Excel workbooks. Only this file imports `openpyxl`."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from datetime import date, datetime, time
from pathlib import Path
from typing import Any

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
            values, formulas = (
                load_workbook(path, read_only=True, data_only=data_only, keep_links=False)
                for data_only in (True, False)
            )
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
    for each in (sheet, formulas):
        each.reset_dimensions()  # some programs write them wrong
    for number, (cells, written) in enumerate(zip(sheet.values, formulas.values, strict=True), 1):
        for column, (cell, formula) in enumerate(zip(cells, written, strict=True), 1):
            if cell is None and formula is not None:
                raise DataError(
                    f"{where}, row {number}, column {column} is a formula without its value; open the"
                    " workbook in Excel or LibreOffice and save it"
                )
        texts = [_text(cell) for cell in cells]
        if any(text.strip() for text in texts):
            found[number] = texts
    return found


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
