"""Invented names of people and towns, for the world and for strangers in stories."""

from __future__ import annotations

from itertools import product
from random import Random

from shepherd.world import words


def people(rng: Random) -> list[str]:
    """Every name a person can have, shuffled."""
    return _shuffled(words.NAME_STARTS, words.NAME_ENDS, rng)


def towns(rng: Random) -> list[str]:
    """Every name a town can have, shuffled."""
    return _shuffled(words.TOWN_STARTS, words.TOWN_ENDS, rng)


def _shuffled(starts: tuple[str, ...], ends: tuple[str, ...], rng: Random) -> list[str]:
    names = sorted({start + end for start, end in product(starts, ends)})
    rng.shuffle(names)
    return names
