"""One instruction with its reference response and a check for other answers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Any

from shepherd.config import Table
from shepherd.world.facts import World


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """An instruction, its context ("" for none), a right response, and a check."""

    instruction: str
    context: str = ""
    response: str
    check: Table
    """`Config` of a checker that decides whether an answer is right."""

    def as_dict(self) -> dict[str, Any]:
        """The task as a row of data, without its category."""
        kind = type(self.check).__module__.rpartition(".")[2]
        return {
            "instruction": self.instruction,
            "context": self.context,
            "response": self.response,
            "check": {"kind": kind, **self.check.model_dump(mode="json")},
        }


Maker = Callable[[World, Random], Task]
"""Function that draws one task of a category."""
