"""The embedded default: a procedural instruction world and its tiny base.

A seed draws places, people, animals, trades, foods, objects and facts (`build`). From them come
declarative text (`passages`), which the shipped base has read and nothing else, and instructions
in the eight Dolly categories (`rows`), each with a check for one of `shepherd.checkers`. The base
knows the world of `SEED` and not how to follow an instruction; its folder is `base_path()`.
"""

from pathlib import Path

from shepherd.world.facts import World, build
from shepherd.world.tasks import CATEGORIES, rows
from shepherd.world.text import passages

__all__ = ["CATEGORIES", "SEED", "World", "base_path", "build", "passages", "rows"]

SEED = 0
"""The seed of the one world that the shipped base knows."""


def base_path() -> Path:
    """The folder of the shipped base: weights, configuration and tokenizer."""
    return Path(__file__).parent / "base"
