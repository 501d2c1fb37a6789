"""Checkers, which decide from the text alone whether an answer is right, and how they compare texts."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Checker:
    """A rule that decides whether an answer is right.

    `right(text)` is pure, takes any text, and accepts no answer without a word. Every checker bounds the
    length of a right answer, so that neither an echoed prompt nor a list of every possibility is right.
    """

    right: Callable[[str], bool]


def normal(text: str) -> str:
    """A text in lower case, with single spaces and without final punctuation.

    >>> normal("  Golden  lamp. ")
    'golden lamp'
    """
    return " ".join(text.lower().split()).rstrip(".!,; ")


def items(text: str) -> list[str]:
    """The items of a list that is written with commas, or one per line with or without a dash.

    >>> items("- Owl\\n- wren, lark.")
    ['owl', 'wren', 'lark']
    """
    found = (normal(item.strip().removeprefix("- ")) for item in re.split(r"[,\n]", text))
    return [item for item in found if item]


def holds(plain: str, phrase: str) -> bool:
    """Whether a normalised text contains a phrase as whole words.

    >>> holds("once an owl slept", "owl"), holds("once a bowl broke", "owl")
    (True, False)
    """
    return re.search(rf"(?<!\w){re.escape(normal(phrase))}(?!\w)", plain) is not None
