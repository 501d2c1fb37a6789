"""An algorithm for tests: it trains nothing."""

from __future__ import annotations

from shepherd.config import Table
from shepherd.core import Algorithm


class Config(Table):
    """It has no keys."""


def build(config: Config) -> Algorithm:
    return Algorithm(trainable=lambda name, round: False)
