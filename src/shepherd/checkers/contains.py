"""A short text that begins and ends as it must, and holds certain phrases as whole words."""

from __future__ import annotations

from shepherd.config import PositiveInt, Table
from shepherd.core.checker import Checker, holds, normal


class Config(Table):
    """The keys of such a check."""

    phrases: tuple[str, ...]
    """What the text holds."""
    most: PositiveInt
    """Words of the text at most."""
    least: PositiveInt = 1
    """Words of the text at least."""
    begins: str = ""
    """How the text begins, whatever its case."""
    ends: str = ""
    """How the text ends, whatever its case and final punctuation."""


def build(config: Config) -> Checker:
    """The check as a value."""

    def right(text: str) -> bool:
        plain = normal(text)
        return (
            config.least <= len(plain.split()) <= config.most
            and plain.startswith(config.begins.lower())
            and plain.endswith(normal(config.ends))
            and all(holds(plain, phrase) for phrase in config.phrases)
        )

    return Checker(right=right)
