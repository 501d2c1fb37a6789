"""What a run has said that it spent of privacy, which it never takes back."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from shepherd.run import ledger

Row = Mapping[str, Any]


def spent(folder: Path, rows: Sequence[Row]) -> dict[str, dict[str, Any]]:
    """What all rounds of a run have spent, by the key of a row that says it: each ledger, and no less.

    A log says less, if later rounds than its last were released and are lost; a ledger, if it is an old copy.

    Args:
        rows: the log, read before this.

    Returns:
        Key of `ledger.LEVELS` -> the ledger, with the epsilon of the log if that is larger; only what it says
        of that, if there is no ledger. Without a key where neither says anything.

    Raises:
        FolderError: a ledger is damaged, or of another run.
    """
    found = {}
    for level, name in ledger.LEVELS.items():
        kept, said = ledger.read(folder, name), _largest(rows, level)
        if "epsilon" in kept and (not said or _epsilon(kept) >= _epsilon(said)):
            found[level] = kept
        elif said:
            found[level] = {**kept, **at_least(kept if "epsilon" in kept else said, said), **_last(rows)}
    return found


def largest(folder: Path, rows: Sequence[Row]) -> Row:
    """The largest epsilon of single examples in the ledger or the log, with its delta; empty without one.

    Raises:
        FolderError: as for `spent`.
    """
    found = spent(folder, rows).get(ledger.EXAMPLES, {})
    return {key: found[key] for key in ("epsilon", "delta") if found}


def at_least(spent: Row, said: Row) -> dict[str, Any]:
    """What is spent, or what was said before, where that was more.

    What was said held of other sites, perhaps, so with the larger delta of both.
    """
    if not said or _epsilon(spent) >= _epsilon(said):
        return dict(spent)
    return {**spent, "epsilon": said["epsilon"], "delta": max(spent["delta"], said["delta"])}


def _largest(rows: Sequence[Row], level: str) -> Row:
    """The largest epsilon in a log, with its delta; empty without one."""
    said = [row[level] for row in rows if _is_said(row.get(level))]
    found: Row = max(said, key=_epsilon, default={})
    return {key: found[key] for key in ("epsilon", "delta") if found}


def _last(rows: Sequence[Row]) -> Row:
    """The last round of a log, as a ledger names it."""
    return {"finished": max(int(row["round"]) for row in rows)}


def _is_said(each: Any) -> bool:
    if not isinstance(each, Mapping) or not {"epsilon", "delta"} <= set(each):
        return False
    numbers = [each["delta"], *([] if each["epsilon"] is None else [each["epsilon"]])]
    return all(isinstance(number, int | float) and number >= 0 for number in numbers)


def _epsilon(row: Row) -> float:
    """Infinity where there is no bound, which files say by null."""
    return math.inf if row["epsilon"] is None else float(row["epsilon"])
