"""A list of a given number of different members of a set."""

from __future__ import annotations

from shepherd.config import PositiveInt, Table
from shepherd.core.checker import Checker, items, normal


class Config(Table):
    """The keys of such a check, apart from its kind."""

    items: tuple[str, ...]
    """Members of the set."""
    count: PositiveInt
    """How many different members are asked for."""


def build(config: Config) -> Checker:
    """Build the checker."""
    known = {normal(item) for item in config.items}

    def right(text: str) -> bool:
        found = items(text)
        return len(found) == len(set(found)) == config.count and set(found) <= known

    return Checker(right=right)
