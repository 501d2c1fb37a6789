"""A federation of silos as a table."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, TextIO

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

if TYPE_CHECKING:
    from shepherd.silos.membership import Status


def report(status: Status, stream: TextIO | None = None) -> None:
    """Print who is connected and what runs."""
    console = Console(file=stream or sys.stdout, highlight=False)
    console.print(f"server {status.server}: {len(status.sites)} sites, {len(status.runs)} runs", markup=False)
    for name, rows in (("site", status.sites), ("run", status.runs)):
        if rows:
            console.print(_table(name, rows))


def _table(name: str, rows: Mapping[str, str]) -> Table:
    table = Table(box=box.SIMPLE)
    table.add_column(name, overflow="fold")
    table.add_column("now", overflow="fold")
    for row in rows.items():
        table.add_row(*map(escape, row))
    return table
