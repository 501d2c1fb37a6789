"""A console that prints text of others literally: neither markup nor control characters take effect."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any, TextIO

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.text import Text

from shepherd.visible import shown


class PlainConsole(Console):
    """A rich console without markup, in which control characters are printed as escapes."""

    def __init__(self, stream: TextIO | None = None) -> None:
        super().__init__(file=stream or sys.stdout, highlight=False, markup=False, emoji=False)

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
