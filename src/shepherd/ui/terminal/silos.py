"""A federation of silos as a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, TextIO

from rich import box
from rich.table import Table

from shepherd.io.progress import duration
from shepherd.ui.terminal.console import PlainConsole

if TYPE_CHECKING:
    from shepherd.silos.coordinator.admin import Status
    from shepherd.silos.server.kept_runs import KeptRun


def report(status: Status, stream: TextIO | None = None) -> None:
    """Print who is connected and what runs."""
    console = PlainConsole(stream)
    there = f"{_count(status.sites, 'site')}, {_count(status.runs, 'run')}"
    console.print(f"server {status.server}: {there}")
    for name, rows in (("site", status.sites), ("run", status.runs)):
        if rows:
            console.print(_table(name, rows))


def report_kept(runs: Sequence[KeptRun], stream: TextIO | None = None) -> None:
    """Print what a server keeps of its runs."""
    console = PlainConsole(stream)
    total = sum(run.bytes for run in runs) / 1e6
    console.print(f"{len(runs)} run{'s' * (len(runs) != 1)}, {total:,.1f} MB")
    if runs:
        console.print(_kept_table(runs))


def _kept_table(runs: Sequence[KeptRun]) -> Table:
    table = Table(box=box.SIMPLE)
    for name in ("run", "rounds", "submitted by", "MB", "now"):
        table.add_column(name, overflow="fold")
    for run in runs:
        now = "is under way" if run.going else f"idle for {duration(run.idle)}"
        row = (run.run, str(run.round), run.submitter, f"{run.bytes / 1e6:,.1f}", now)
        table.add_row(*row)
    return table


def _count(rows: Mapping[str, str], name: str) -> str:
    return f"1 {name}" if len(rows) == 1 else f"{len(rows)} {name}s"


def _table(name: str, rows: Mapping[str, str]) -> Table:
    table = Table(box=box.SIMPLE)
    table.add_column(name, overflow="fold")
    table.add_column("now", overflow="fold")
    for row in rows.items():
        table.add_row(*row)
    return table
