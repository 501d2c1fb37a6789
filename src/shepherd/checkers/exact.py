"""One answer, in any case of letters, spacing and final punctuation."""

from __future__ import annotations

from shepherd.config import Table
from shepherd.core.checker import Checker, normal


class Config(Table):
    """The keys of such a check, apart from its kind."""

    answer: str
    """The right answer."""


def build(config: Config) -> Checker:
    """Build the checker."""
    return Checker(right=lambda text: normal(text) == normal(config.answer) != "")
