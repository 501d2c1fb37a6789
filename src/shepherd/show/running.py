"""The display of a run under way: live on a terminal, else one plain line a round."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol, TextIO

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from shepherd.show import figures
from shepherd.show.figures import Progress, Row


class Display(Protocol):
    """What the loop tells the person. Everything may be called at any time and in any order."""

    def say(self, text: str) -> None:
        """One line on what is being prepared or has happened."""

    def begin(self, title: str, until: int, rows: Sequence[Row]) -> None:
        """The run is ready: `rows` are its finished rounds, `until` is its last one."""

    def progress(self, progress: Progress) -> None:
        """The round under way has come so far."""

    def row(self, row: Row) -> None:
        """A round is finished, as its row in the log says. A round that is known already is no news."""


@contextmanager
def display(stream: TextIO | None = None) -> Iterator[Display]:
    """A live display where `stream` (stdout) is a terminal, plain lines where it is not."""
    stream = stream or sys.stdout
    if not stream.isatty() or os.environ.get("TERM") == "dumb":
        yield PlainDisplay(stream)
        return
    live = LiveDisplay(Console(file=stream, highlight=False))
    try:
        yield live
    finally:
        live.stop()


class PlainDisplay:
    """One line a round, flushed as it comes, with no control characters."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._until = 0
        self._rows: list[Row] = []

    def say(self, text: str) -> None:
        print(text, file=self._stream, flush=True)

    def begin(self, title: str, until: int, rows: Sequence[Row]) -> None:
        self._until, self._rows = until, list(rows)
        self.say(title)

    def progress(self, progress: Progress) -> None:
        pass  # a log needs no line for it

    def row(self, row: Row) -> None:
        if _known(row, self._rows):
            return
        self._rows.append(row)
        for failure in figures.failures(row):
            self.say(failure)
        self.say(figures.line(row, self._rows, self._until))


class LiveDisplay:
    """Round, clients, losses, speed and time left, drawn again a few times a second."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._title, self._until = "", 0
        self._rows: list[Row] = []
        self._progress: Progress | None = None
        self._live = Live(console=console, get_renderable=self.draw, refresh_per_second=4)

    def say(self, text: str) -> None:
        self._console.print(text, markup=False)

    def begin(self, title: str, until: int, rows: Sequence[Row]) -> None:
        self._title, self._until, self._rows = title, until, list(rows)
        self._live.start()

    def progress(self, progress: Progress) -> None:
        self._progress = progress

    def row(self, row: Row) -> None:
        if _known(row, self._rows):
            return
        self._rows.append(row)
        self._progress = None
        for failure in figures.failures(row):
            self.say(failure)

    def stop(self) -> None:
        """Leave the last picture on the screen. Does nothing a second time."""
        if self._live.is_started:
            self._live.stop()

    def draw(self) -> Group:
        """The picture now. Called by rich's own thread, so it only reads."""
        return Group(Text(self._title, style="bold", overflow="ellipsis", no_wrap=True), self._figures())

    def _figures(self) -> Table:
        grid = Table.grid(padding=(0, 2))
        grid.add_column(style="dim", no_wrap=True)
        grid.add_column(no_wrap=True, overflow="ellipsis")
        grid.add_column(no_wrap=True)
        for label, text, picture in self._lines():
            grid.add_row(label, text, picture)
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
        yield "loss", _last([*losses, now.loss] if now and now.tokens else losses), self._spark(losses)
        yield "held out", _last(figures.held_out(rows)), self._spark(figures.held_out(rows))
        speed = figures.tokens_per_second(rows, now)
        yield "speed", f"{figures.count(speed)} tokens/s" if speed else "-", ""
        left = figures.time_left(rows, self._until, now)
        yield "time left", figures.duration(left) if left else "-", ""

    def _spark(self, values: Sequence[float]) -> str:
        return figures.sparkline(values) if self._console.encoding.startswith("utf") else ""


def _bar(done: float, total: int) -> ProgressBar:
    return ProgressBar(total=max(total, 1), completed=done, width=30)


def _last(values: Sequence[float]) -> str:
    return f"{values[-1]:.4f}" if values else "-"


def _known(row: Row, rows: Sequence[Row]) -> bool:
    return bool(rows) and row["round"] <= rows[-1]["round"]
