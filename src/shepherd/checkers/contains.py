"""A short text with a required beginning and end that contains certain phrases as whole words."""

from __future__ import annotations

from shepherd.config import PositiveInt, Table
from shepherd.core.checker import Checker, holds, normal


class Config(Table):
    """The keys of such a check, apart from its kind."""

    phrases: tuple[str, ...]
    """Phrases that the text must contain."""
    most: PositiveInt
    """Most words that the text may have."""
    least: PositiveInt = 1
    """Fewest words that the text may have."""
    begins: str = ""
    """How the text must begin, in any case of letters."""
    ends: str = ""
    """How the text must end, in any case of letters and with any final punctuation."""


def build(config: Config) -> Checker:
    """Build the checker."""

    def right(text: str) -> bool:
        plain = normal(text)
        return (
            config.least <= len(plain.split()) <= config.most
            and plain.startswith(config.begins.lower())
            and plain.endswith(normal(config.ends))
            and all(holds(plain, phrase) for phrase in config.phrases)
        )

    return Checker(right=right)
