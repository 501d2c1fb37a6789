"""A console that prints text of others literally: neither markup nor control characters take effect."""

from __future__ import annotations

import errno
import os
import sys
from collections import Counter
from collections.abc import Iterable
from typing import Any, TextIO

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.table import Column, Table
from rich.text import Text

from shepherd.visible import shown

READER_GONE = (errno.EPIPE, errno.EIO, errno.ENXIO)
"""Faults of a write to a pipe that is closed, as by `| head`, or to a terminal that has gone."""


def dropped(error: OSError, stream: TextIO) -> bool:
    """Whether the reader of a stream has gone; then what is written to it from now on is dropped.

    What is still in its buffer is dropped too. No work ends because nobody reads about it.
    """
    if error.errno not in READER_GONE:
        return False
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, stream.fileno())
    os.close(null)
    return True


class PlainConsole(Console):
    """A rich console without markup, in which control characters are printed as escapes.

    What it prints when its reader has gone is dropped.
    """

    def __init__(self, stream: TextIO | None = None) -> None:
        super().__init__(file=stream or sys.stdout, highlight=False, markup=False, emoji=False)

    def _check_buffer(self) -> None:
        try:
            super()._check_buffer()
        except OSError as error:
            if not dropped(error, self.file):  # type: ignore[arg-type]
                raise
            self._buffer.clear()

    def on_broken_pipe(self) -> None:
        """Go on, where rich would end the program."""
        raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))

    def print_table(self, table: Table) -> None:
        """Print a table with every number whole.

        Off a terminal it is as wide as it needs, unless the variable COLUMNS says how wide. On a terminal
        that is too narrow, names and heads are wrapped, then heads cut with "…", and at last the rows are
        printed as lists.
        """
        if not self.is_terminal and "COLUMNS" not in os.environ:
            self.width = max(
                self.width, _widths_beside(table) + sum(_longest(self, each) for each in table.columns)
            )
        fitted = _fitted(self, table)
        if fitted is None:
            self._print_rows(table)
        else:
            self.print(fitted)

    def _print_rows(self, table: Table) -> None:
        """Print each row as a list of "head: cell" lines."""
        if table.title:
            self.print(table.title, soft_wrap=True)
        first, *others = table.columns
        heads = [_flat(column.header) for column in others]
        for row, name in enumerate(first.cells):
            self.print(f"\n{_flat(name)}", soft_wrap=True)
            for head, column in zip(heads, others, strict=True):
                if cell := _flat(list(column.cells)[row]):
                    self.print(f"  {head}: {cell}", soft_wrap=True)

    def render_str(self, text: str, **options: Any) -> Text:
        """The text with control characters as escapes, since rich would drop some of them."""
        return super().render_str(shown(text), **options)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """The segments with control characters as escapes, also those of a `Text` made without `styled`."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else segment._replace(text=shown(segment.text))


def styled(text: object, style: str = "", **options: Any) -> Text:
    """A rich `Text` of a text of others, in a style; the options are those of `Text`."""
    return Text(shown(text), style=style, **options)


NARROWEST_NAME = 8
"""Characters of a name that stay when it is cut, if the name is longer."""


def _fitted(console: Console, table: Table) -> Table | None:
    """The table with columns that fit the console, or None if its numbers do not.

    A column of numbers is as wide as its longest cell; its head may be wrapped or cut. A column of names gets
    what is left.
    """
    beside, columns = _widths_beside(table), table.columns
    whole = [_longest(console, column) for column in columns]
    room = console.width - beside
    if sum(whole) <= room or _is_whole(console, table):
        return table
    names = [column.justify != "right" for column in columns]
    least = [
        min(NARROWEST_NAME, _longest(console, column)) if name else _longest(console, column, head=False)
        for column, name in zip(columns, names, strict=True)
    ]
    spare = room - sum(least)
    if spare < 0:
        return None
    # each column gets an equal part of what is left, up to what it needs
    widths = list(least)
    while spare > 0:
        wanting = [place for place, width in enumerate(widths) if width < whole[place]]
        for place in wanting[:spare]:
            widths[place] += 1
        spare -= len(wanting[:spare])
    for column, width, name in zip(columns, widths, names, strict=True):
        column.width = width
        if not name and max(map(len, _flat(column.header).split()), default=0) > width:
            column.header = "\n".join(_cut(word, width) for word in _flat(column.header).split())
    return table


def _is_whole(console: Console, table: Table) -> bool:
    """Whether rich, left alone, cuts no number and breaks no word of a head at this width."""
    printed = Counter("".join(segment.text for segment in console.render(table)).split())
    numbers = [text for column in table.columns if column.justify == "right" for text in column.cells]
    heads = [column.header for column in table.columns]
    wanted = Counter(word for text in (*numbers, *heads) for word in shown(_plain(text)).split())
    return wanted <= printed


def _widths_beside(table: Table) -> int:
    """Width of a table without its cells: padding and edges."""
    _, right, _, left = table.padding
    edges = 2 if table.box and table.show_edge else 0
    between = len(table.columns) - 1 if table.box else 0
    return len(table.columns) * (left + right) + edges + between


def _longest(console: Console, column: Column, *, head: bool = True) -> int:
    """Width of the longest line in a column's cells, and in its head."""
    texts = [*([column.header] if head else []), *column.cells]
    lines = (line for text in texts for line in str(_plain(text)).split("\n"))
    return max((cell_len(shown(line)) for line in lines), default=0)


def _plain(text: RenderableType) -> str:
    return text.plain if isinstance(text, Text) else str(text)


def _flat(text: RenderableType) -> str:
    return " ".join(_plain(text).split())


def _cut(word: str, width: int) -> str:
    return word if len(word) <= width else f"{word[: width - 1]}…"
