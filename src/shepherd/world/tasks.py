"""Instructions about a world in the eight Dolly categories, each with its check."""

from __future__ import annotations

from collections.abc import Mapping
from random import Random
from types import MappingProxyType
from typing import Any

from shepherd.world import knowing, reading, writing
from shepherd.world.facts import World
from shepherd.world.task import Maker, Task

MAKERS: Mapping[str, Maker] = MappingProxyType(
    {
        "open_qa": knowing.open_qa,
        "closed_qa": reading.closed_qa,
        "classification": knowing.classification,
        "information_extraction": reading.information_extraction,
        "summarization": reading.summarization,
        "brainstorming": knowing.brainstorming,
        "general_qa": knowing.general_qa,
        "creative_writing": writing.creative_writing,
    }
)
"""Category -> function that draws one task of it."""

CATEGORIES = tuple(MAKERS)
MAX_REPEATED_DRAWS = 1000
"""Draws in a row that repeat known instructions, after which a category counts as exhausted."""


def rows(world: World, per_category: int, seed: int) -> list[dict[str, Any]]:
    """Draw `per_category` distinct instructions of each category, category by category.

    A row has instruction, context, response, category and check, which a checker uses to judge an answer. The
    rows of one category do not depend on those of another.

    Raises:
        ValueError: a category does not have that many distinct instructions.
    """
    return [
        {**task.as_dict(), "category": category}
        for category in CATEGORIES
        for task in _distinct(world, category, per_category, Random(f"{seed}/{category}"))
    ]


def _distinct(world: World, category: str, count: int, rng: Random) -> list[Task]:
    found: dict[str, Task] = {}
    repeated = 0
    while len(found) < count and repeated < MAX_REPEATED_DRAWS:
        task = MAKERS[category](world, rng)
        repeated = repeated + 1 if task.instruction in found else 0
        found.setdefault(task.instruction, task)
    if len(found) < count:
        raise ValueError(
            f"{category} gave only {len(found)} different instructions of the {count} asked for; "
            "ask for fewer per category"
        )
    return list(found.values())
