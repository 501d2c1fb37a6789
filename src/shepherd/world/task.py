"""One instruction with its reference response and the check that judges any other."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Any

from shepherd.config import Table
from shepherd.world.facts import World


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """What is asked, about which context ("" for none), and what is right."""

    instruction: str
    context: str = ""
    response: str
    check: Table
    """The `Config` of a checker, which says what is right."""

    def as_dict(self) -> dict[str, Any]:
        """The task as a row, all but its category."""
        kind = type(self.check).__module__.rpartition(".")[2]
        return {
            "instruction": self.instruction,
            "context": self.context,
            "response": self.response,
            "check": {"kind": kind, **self.check.model_dump(mode="json")},
        }


Maker = Callable[[World, Random], Task]
"""Draws one task of a category."""
