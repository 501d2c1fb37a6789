"""A console that prints text of others literally: neither markup nor control characters take effect."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Iterable
from typing import Any, TextIO

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
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
