"""The display of a run under way: live on a terminal, plain lines elsewhere."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol, TextIO

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table

from shepherd.io import progress
from shepherd.io.progress import Progress, duration
from shepherd.ui.terminal import figures
from shepherd.ui.terminal.console import PlainConsole, dropped, styled
from shepherd.ui.terminal.figures import Row
from shepherd.visible import shown_line


class Display(Protocol):
    """Where a run reports to the person. Methods may be called at any time, in any order, by any thread."""

    level: int
    """Lowest level of the records of `shepherd.io.progress` that it shows."""

    def echo(self, text: str) -> None:
        """Show one line about what is being prepared or has happened."""

    def on_progress(self, record: logging.LogRecord) -> None:
        """Show a record of `shepherd.io.progress`: how far the work is."""

    def begin(self, title: str, until: int, rows: Sequence[Row]) -> None:
        """Begin the display of a run: `rows` are its finished rounds, `until` is its last one."""

    def row(self, row: Row) -> None:
        """Show a finished round by its row in the log. A round that was shown already is ignored."""


@contextmanager
def display(stream: TextIO | None = None) -> Iterator[Display]:
    """A live display if `stream` (stdout) is a terminal, else plain lines.

    It shows what the logger "shepherd" gets, in place of any display around it.
    """
    stream = stream or sys.stdout
    if not stream.isatty() or os.environ.get("TERM") == "dumb":
        plain = PlainDisplay(stream)
        with _logging_to(plain):
            yield plain
        return
    live = LiveDisplay(PlainConsole(stream))
    try:
        with _logging_to(live):
            yield live
    finally:
        live.stop()


@contextmanager
def plain_lines(stream: TextIO | None = None) -> Iterator[Display]:
    """A display with plain lines on a terminal too, for work that is not one run."""
    plain = PlainDisplay(stream or sys.stdout)
    with _logging_to(plain):
        yield plain


class _Handler(logging.Handler):
    """Passes log records on to a display."""

    def __init__(self, display: Display) -> None:
        super().__init__()
        self._display = display

    def emit(self, record: logging.LogRecord) -> None:
        if record.name == progress.log.name:
            self._display.on_progress(record)
        else:
            self._display.echo(record.getMessage())


@contextmanager
def _logging_to(target: Display) -> Iterator[None]:
    root = logging.getLogger("shepherd")
    before = root.handlers, root.level, progress.log.level
    root.handlers = [_Handler(target)]
    root.setLevel(logging.INFO)
    progress.log.setLevel(target.level)
    try:
        yield
    finally:
        root.handlers = before[0]
        root.setLevel(before[1])
        progress.log.setLevel(before[2])


class PlainDisplay:
    """One line for each round, and one at least every half minute in between, without control characters."""

    level = logging.INFO

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._until = 0
        self._rows: list[Row] = []

    def echo(self, text: str) -> None:
        try:
            print(shown_line(text), file=self._stream, flush=True)
        except OSError as error:
            if not dropped(error, self._stream):
                raise

    def on_progress(self, record: logging.LogRecord) -> None:
        self.echo(record.getMessage())

    def begin(self, title: str, until: int, rows: Sequence[Row]) -> None:
        self._until, self._rows = until, list(rows)
        self.echo(title)

    def row(self, row: Row) -> None:
        if _is_shown(row, self._rows):
            return
        self._rows.append(row)
        for sentence in (*figures.failures(row), *figures.late(row)):
            self.echo(sentence)
        self.echo(figures.line(row, self._rows, self._until))


class LiveDisplay:
    """Round, clients, losses, speed and time left, redrawn a few times a second."""

    level = logging.DEBUG

    def __init__(self, console: Console) -> None:
        self._console = console
        self._title, self._until = "", 0
        self._rows: list[Row] = []
        self._progress: Progress | None = None
        self._now = ""
        self._live = Live(console=console, get_renderable=self.draw, refresh_per_second=4)

    def echo(self, text: str) -> None:
        self._console.print(styled(shown_line(text)))

    def begin(self, title: str, until: int, rows: Sequence[Row]) -> None:
        self._title, self._until, self._rows = title, until, list(rows)
        self._live.start()

    def on_progress(self, record: logging.LogRecord) -> None:
        argument = record.args[0] if isinstance(record.args, tuple) and record.args else None
        if isinstance(argument, Progress):
            self._progress, self._now = argument, ""
        elif self._live.is_started:
            self._now = record.getMessage()
        elif record.levelno >= logging.INFO:
            self.echo(record.getMessage())

    def row(self, row: Row) -> None:
        if _is_shown(row, self._rows):
            return
        self._rows.append(row)
        self._progress = None
        for sentence in (*figures.failures(row), *figures.late(row)):
            self.echo(sentence)

    def stop(self) -> None:
        """End the live display; its last picture stays on the screen. A second call does nothing."""
        if self._live.is_started:
            self._live.stop()

    def draw(self) -> Group:
        """The lines to show now. Rich calls it from its own thread, so it only reads."""
        title = styled(shown_line(self._title), "bold", overflow="ellipsis", no_wrap=True)
        return Group(title, self._table())

    def _table(self) -> Table:
        grid = Table.grid(padding=(0, 2))
        grid.add_column(style="dim", no_wrap=True)
        grid.add_column(no_wrap=True, overflow="ellipsis")
        grid.add_column(no_wrap=True)
        for label, text, picture in self._lines():
            grid.add_row(label, styled(shown_line(text)), picture)
        return grid

    def _lines(self) -> Iterator[tuple[str, str, ProgressBar | str]]:
        rows, now = self._rows, self._progress
        done = rows[-1]["round"] if rows else 0
        cohort = now.clients if now else 0
        part = now.clients_done / cohort if now and cohort else 0.0
        yield "round", f"{min(done + 1, self._until)} of {self._until}", _bar(done + part, self._until)
        if now:
            yield "clients", f"{now.clients_done} of {cohort}", _bar(now.clients_done, cohort)
        losses = [row["loss"] for row in rows if row.get("loss") is not None]
        yield "loss", _latest([*losses, now.loss] if now and now.tokens else losses), self._spark(losses)
        yield "held out", _latest(figures.held_out(rows)), self._spark(figures.held_out(rows))
        yield from (("spent", said, "") for said in (figures.budgets(rows[-1]) if rows else ()))
        speed = figures.tokens_per_second(rows, now)
        yield "speed", f"{figures.count(speed)} tokens/s" if speed else "-", ""
        left = figures.time_left(rows, self._until, now)
        yield "time left", duration(left) if left else "-", ""
        if self._now:
            yield "now", self._now, ""

    def _spark(self, values: Sequence[float]) -> str:
        return figures.sparkline(values) if self._console.encoding.startswith("utf") else ""


def _bar(done: float, total: int) -> ProgressBar:
    return ProgressBar(total=max(total, 1), completed=done, width=30)


def _latest(values: Sequence[float]) -> str:
    return f"{values[-1]:.4f}" if values else "-"


def _is_shown(row: Row, rows: Sequence[Row]) -> bool:
    return bool(rows) and row["round"] <= rows[-1]["round"]
