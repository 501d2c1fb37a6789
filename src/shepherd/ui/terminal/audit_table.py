"""Print what an audit found."""

from __future__ import annotations

from typing import TYPE_CHECKING, TextIO

from rich import box
from rich.table import Table

from shepherd.ui.report.number_formats import FORMS
from shepherd.ui.terminal.console import PlainConsole, styled

if TYPE_CHECKING:  # torch is not for `--help`
    from shepherd.audit.auditing import Audit
    from shepherd.audit.sections import Cell, Section


def print_audit(found: Audit, stream: TextIO | None = None) -> None:
    """Print each section as a table, and what the numbers allow one to say."""
    from shepherd.audit.sections import says, sections

    console = PlainConsole(stream)
    for section in sections(found.found):
        console.print_table(_table(section))
        for note in section.notes:
            console.print(styled(note), soft_wrap=True)
    console.print()
    console.print(styled(" ".join(says(found.found))), soft_wrap=True)
    for remark in found.found.remarks:
        console.print(styled(f"{remark[0].upper()}{remark[1:]}."), soft_wrap=True)


def _table(section: Section) -> Table:
    table = Table(box=box.SIMPLE, title=styled(section.title), title_justify="left", padding=(0, 1, 0, 0))
    for place, column in enumerate(section.columns):
        table.add_column(
            column.label, justify="right" if place else "left", overflow="fold", no_wrap=bool(place)
        )
    for row in section.rows:
        cells = (_cell(cell, column.form) for cell, column in zip(row, section.columns, strict=True))
        table.add_row(*map(styled, cells))
    return table


def _cell(cell: Cell, form: str) -> str:
    """A cell as text, an interval on two lines."""
    match cell:
        case None:
            return "–"
        case str():
            return cell
        case int() | float():
            return FORMS[form](cell)
        case _:
            low, high = (_cell(cell[key], form) for key in ("low", "high"))
            return f"{_cell(cell['value'], form)}\n[{low}, {high}]"
