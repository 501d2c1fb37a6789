"""A list with commas that holds each item once, in any order, after the words that it begins with."""

from __future__ import annotations

from shepherd.config import Table
from shepherd.core.checker import Checker, items, normal


class Config(Table):
    """The keys of such a check."""

    items: tuple[str, ...]
    """What the list holds."""
    begins: str = ""
    """The words before the list."""


def build(config: Config) -> Checker:
    """The check as a value."""
    known, begins = sorted(normal(item) for item in config.items), config.begins.lower()

    def right(text: str) -> bool:
        start, rest = text.strip()[: len(begins)], text.strip()[len(begins) :]
        return start.lower() == begins and sorted(items(rest)) == known != []

    return Checker(right=right)
