"""A federation of silos as a table."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, TextIO

from rich import box
from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from shepherd.silos.membership import Status


def report(status: Status, stream: TextIO | None = None) -> None:
    """Print who is connected and what runs."""
    console = Console(file=stream or sys.stdout, highlight=False)
    console.print(f"server {status.server}: {len(status.sites)} sites, {len(status.jobs)} runs", markup=False)
    if status.sites:
        table = Table(box=box.SIMPLE)
        table.add_column("site", overflow="fold")
        table.add_column("now", overflow="fold")
        for site, doing in status.sites.items():
            table.add_row(site, doing)
        console.print(table)
