"""What a model writes as Markdown, formatted without HTML, links or pictures.

A picture or a link would call a host that the model chose, and HTML could run code; they stay the text that
they are. Only this file imports markdown-it.
"""

from __future__ import annotations

from functools import cache
from importlib import import_module
from typing import Any

from shepherd.visible import shown

_OFF = ("image", "link", "autolink", "reference", "html_block", "html_inline", "entity")
"""Rules of CommonMark that are not used."""


@cache
def _reader() -> Any:
    made = import_module("markdown_it").MarkdownIt("commonmark", {"html": False, "breaks": True})
    return made.enable("table").disable(list(_OFF))


def as_html(text: str) -> str:
    """Markdown as HTML: paragraphs, emphasis, lists, tables and code.

    >>> as_html("**b** <i>")
    '<p><strong>b</strong> &lt;i&gt;</p>\\n'
    """
    return str(_reader().render(shown(text)))
