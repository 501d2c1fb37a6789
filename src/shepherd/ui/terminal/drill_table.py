"""Print what a drill found."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TextIO

from rich import box
from rich.table import Table

from shepherd.ui.report.number_formats import FORMS
from shepherd.ui.terminal.console import PlainConsole, styled

if TYPE_CHECKING:  # torch is not for `--help`
    from shepherd.drill.drilling import Drill


def print_drill(found: Drill, stream: TextIO | None = None) -> None:
    """Print a table for each attack, and what they allow one to say."""
    console = PlainConsole(stream)
    for section in found.row["sections"]:
        console.print_table(_table(section))
        for note in section["notes"]:
            console.print(styled(note), soft_wrap=True)
    console.print()
    console.print(styled(" ".join(found.row["says"])), soft_wrap=True)


def _table(section: Mapping[str, Any]) -> Table:
    title = f"{section['title']}: {section['words']}"
    table = Table(box=box.SIMPLE, title=styled(title), title_justify="left", padding=(0, 1, 0, 0))
    for place, column in enumerate(section["columns"]):
        table.add_column(
            column["label"], justify="right" if place else "left", overflow="fold", no_wrap=bool(place)
        )
    for name, *cells in section["rows"]:
        forms = (column["form"] for column in section["columns"][1:])
        numbers = (
            "–" if cell is None else FORMS[form](cell) for cell, form in zip(cells, forms, strict=True)
        )
        table.add_row(*map(styled, (name, *numbers)))
    return table
