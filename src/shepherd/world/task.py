"""One instruction with its reference response and the check that judges any other."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Any

from shepherd.world.check import AnyCheck, as_dict
from shepherd.world.facts import World


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """What is asked, about which context ("" for none), and what is right."""

    instruction: str
    context: str = ""
    response: str
    check: AnyCheck

    def as_dict(self) -> dict[str, Any]:
        """The task as a row, all but its category."""
        return {
            "instruction": self.instruction,
            "context": self.context,
            "response": self.response,
            "check": as_dict(self.check),
        }


Maker = Callable[[World, Random], Task]
"""Draws one task of a category."""
