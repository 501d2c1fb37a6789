"""What a run has said that it spent of privacy, which it never takes back."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from shepherd.run import ledger

Row = Mapping[str, Any]


def largest(folder: Path, rows: Sequence[Row]) -> Row:
    """The largest epsilon of single examples in the ledger or the log, with its delta; empty without one.

    Raises:
        FolderError: the ledger is damaged.
    """
    kept = ledger.read(folder, ledger.OF_EXAMPLES)
    said = [
        each
        for each in (kept, *(row.get(ledger.EXAMPLES) or {} for row in rows))
        if {"epsilon", "delta"} <= set(each)
    ]
    found = max(said, key=_epsilon, default={})
    return {key: found[key] for key in ("epsilon", "delta") if found}


def at_least(spent: Row, said: Row) -> dict[str, Any]:
    """What is spent, or what was said before, where that was more.

    What was said held of other sites, perhaps, so with the larger delta of both.
    """
    if not said or _epsilon(spent) >= _epsilon(said):
        return dict(spent)
    return {**spent, "epsilon": said["epsilon"], "delta": max(spent["delta"], said["delta"])}


def _epsilon(row: Row) -> float:
    """Infinity where there is no bound, which files say by null."""
    return math.inf if row["epsilon"] is None else float(row["epsilon"])
