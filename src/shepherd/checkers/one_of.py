"""One of several answers, in any case of letters, spacing and final punctuation."""

from __future__ import annotations

from shepherd.config import Table
from shepherd.core.checker import Checker, normal


class Config(Table):
    """The keys of such a check, apart from its kind."""

    answers: tuple[str, ...]
    """The right answers."""


def build(config: Config) -> Checker:
    """Build the checker."""
    known = {normal(answer) for answer in config.answers} - {""}
    return Checker(right=lambda text: normal(text) in known)
