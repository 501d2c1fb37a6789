"""The embedded data and base: a procedurally generated world of facts, and a tiny model trained on it.

A seed draws places, people, animals, trades, foods, objects and facts (`build`). They give declarative text
(`passages`), the only text that the shipped base was trained on, and instructions in the eight Dolly
categories (`rows`), each with a check for one of `shepherd.checkers`, or with a right and a wrong answer
(`preferences`). The base knows the world of `SEED`, but
does not follow instructions; its folder is `base_path()`.
"""

from pathlib import Path

from shepherd.world.choosing import preferences
from shepherd.world.facts import World, build
from shepherd.world.tasks import CATEGORIES, rows
from shepherd.world.text import passages

__all__ = ["CATEGORIES", "SEED", "World", "base_path", "build", "passages", "preferences", "rows"]

SEED = 0
"""Seed of the world that the shipped base was trained on."""


def base_path() -> Path:
    """Folder of the shipped base: weights, configuration and tokenizer."""
    return Path(__file__).parent / "base"
