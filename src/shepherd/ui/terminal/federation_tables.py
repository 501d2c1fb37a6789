"""Print a federation: its sites and runs, and the runs that a server keeps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, TextIO

from rich import box
from rich.table import Table

from shepherd.io.progress import duration, many
from shepherd.ui.terminal.console import PlainConsole

if TYPE_CHECKING:
    from shepherd.silos.coordinator.admin import Status
    from shepherd.silos.server.kept_runs import KeptRun


def print_status(status: Status, stream: TextIO | None = None) -> None:
    """Print the connected sites and the runs under way, each with what it does now."""
    console = PlainConsole(stream)
    counts = f"{many(len(status.sites), 'site')}, {many(len(status.runs), 'run')}"
    console.print(f"server {status.server}: {counts}")
    for name, rows in (("site", status.sites), ("run", status.runs)):
        if rows:
            console.print_table(_table(name, rows))


def print_kept_runs(runs: Sequence[KeptRun], stream: TextIO | None = None) -> None:
    """Print the runs whose state a server keeps, with their size in MB."""
    console = PlainConsole(stream)
    total = sum(run.bytes for run in runs) / 1e6
    console.print(f"{many(len(runs), 'run')}, {total:,.1f} MB")
    if runs:
        console.print_table(_kept_table(runs))


def _kept_table(runs: Sequence[KeptRun]) -> Table:
    table = Table(box=box.SIMPLE)
    for name in ("run", "rounds", "submitted by", "MB", "now"):
        table.add_column(name, overflow="fold")
    for run in runs:
        now = "running" if run.active else f"idle for {duration(run.idle_s)}"
        row = (run.run, str(run.round), run.submitter, f"{run.bytes / 1e6:,.1f}", now)
        table.add_row(*row)
    return table


def _table(name: str, rows: Mapping[str, str]) -> Table:
    table = Table(box=box.SIMPLE)
    table.add_column(name, overflow="fold")
    table.add_column("now", overflow="fold")
    for row in rows.items():
        table.add_row(*row)
    return table
