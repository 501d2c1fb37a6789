"""The console of everything that is printed: no text of others acts on it, be it markup or an escape."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any, TextIO

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.text import Text

from shepherd.visible import shown


class PlainConsole(Console):
    """A console that takes a text for a text: no markup, and what would act on a terminal is made visible."""

    def __init__(self, stream: TextIO | None = None) -> None:
        super().__init__(file=stream or sys.stdout, highlight=False, markup=False, emoji=False)

    def render_str(self, text: str, **options: Any) -> Text:
        """The text with its control characters as escapes, before rich leaves some of them out."""
        return super().render_str(shown(text), **options)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """As rich does, and once more for a `Text` that was made without `styled`."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else segment._replace(text=shown(segment.text))


def styled(text: object, style: str = "", **options: Any) -> Text:
    """A text of others in a style; the arguments are those of rich's `Text`."""
    return Text(shown(text), style=style, **options)
