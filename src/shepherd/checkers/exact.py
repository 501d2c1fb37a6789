"""The answer itself, whatever its case, spacing and final punctuation."""

from __future__ import annotations

from shepherd.config import Table
from shepherd.core.checker import Checker, normal


class Config(Table):
    """The keys of such a check."""

    answer: str
    """The right answer."""


def build(config: Config) -> Checker:
    """The check as a value."""
    return Checker(right=lambda text: normal(text) == normal(config.answer) != "")
