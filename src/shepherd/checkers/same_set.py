"""A list with commas that has exactly these items, each once and in any order, after a required beginning."""

from __future__ import annotations

from shepherd.config import Table
from shepherd.core.checker import Checker, items, normal


class Config(Table):
    """The keys of such a check, apart from its kind."""

    items: tuple[str, ...]
    """Items of the list."""
    begins: str = ""
    """Words before the list."""


def build(config: Config) -> Checker:
    """Build the checker."""
    known, begins = sorted(normal(item) for item in config.items), config.begins.lower()

    def right(text: str) -> bool:
        start, rest = text.strip()[: len(begins)], text.strip()[len(begins) :]
        return start.lower() == begins and sorted(items(rest)) == known != []

    return Checker(right=right)
