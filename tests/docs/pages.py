"""A tutorial as what it has a reader do: files to write, commands, Python, and what is printed."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

TUTORIALS = Path(__file__).parents[2] / "docs" / "tutorial"
FENCE = re.compile(r"^```(\w+)(?: title=\"([^\"]+)\")?\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True, slots=True)
class Block:
    """A fenced block. With a title it is a file; `sh` and `python` are run; `text` is what they print.

    `console` shows what is not run here, such as what needs a network.
    """

    kind: str
    title: str
    text: str


def blocks(name: str, smaller: Mapping[str, str]) -> list[Block]:
    """The blocks of a tutorial, with its numbers made smaller for a test."""
    page = (TUTORIALS / f"{name}.md").read_text(encoding="utf8")
    for before, after in smaller.items():
        assert before in page, f"{name}.md has no {before!r} any more; change the test with it"
        page = page.replace(before, after)
    return [Block(*found) for found in FENCE.findall(page)]


def commands(block: Block) -> list[str]:
    """Its lines, without comments; a line that ends in a backslash goes on."""
    lines = block.text.replace("\\\n", " ").splitlines()
    return [line.partition("  #")[0].strip() for line in lines if line and not line.startswith("#")]


def unsaid(shown: str, printed: str) -> list[str]:
    """The lines of a `text` block that were not printed, whatever the numbers in them.

    A line that ends in "..." may go on in another way; "..." alone stands for any lines.

    >>> unsaid("round 1/3  loss 4.2  3 s\\n...", "loading\\nround 1/3  loss 5.25  1 min\\n")
    ['round 1/3  loss 4.2  3 s']
    >>> unsaid("round 1/3  loss 4.2 ...", "loading\\nround 1/3  loss 5.25  1 min\\n")
    []
    """
    said = [_plain(line) for line in printed.splitlines()]
    return [line for line in shown.splitlines() if line.strip() != "..." and not _is_said(line, said)]


def _is_said(line: str, said: list[str]) -> bool:
    start = _plain(line.removesuffix("..."))
    return any(each.startswith(start) if line.endswith("...") else each == start for each in said)


def _plain(line: str) -> str:
    """With each number as 0, and one space where there are several."""
    return " ".join(re.sub(r"\d+([.,]\d+)*", "0", line).split())
