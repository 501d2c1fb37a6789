"""What a run was expected to take, and what it took: memory, time and bytes."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from shepherd.errors import FolderError

EXPECTED, MEASURED = "expected.json", "measured.json"
"""Names of the files in a run folder: written when a run begins, and when it ends."""
PEAK = "memory_bytes"


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One figure of a run, planned and measured; None where it is not known."""

    name: str
    unit: str
    """"bytes" or "seconds"."""
    planned: float | None
    measured: float | None

    @property
    def off(self) -> float | None:
        """By what share the plan was off: 0.1 where it was a tenth too high, -0.1 where too low."""
        if self.planned is None or not self.measured:
            return None
        return self.planned / self.measured - 1


def figures(folder: Path, rows: Sequence[Mapping[str, Any]]) -> list[Figure]:
    """The figures of a run, by its folder and its log; empty for a run that kept no expectation.

    The first round is left out of the times where there are others: it also starts threads and workers.

    Raises:
        FolderError: a file is damaged.
    """
    planned, measured = _read(folder / EXPECTED), _read(folder / MEASURED)
    if not planned:
        return []
    trained = [row for row in rows if row["round"]]
    later = trained[1:] or trained
    return [
        Figure(
            name="peak memory",
            unit="bytes",
            planned=planned.get(PEAK),
            measured=measured.get(PEAK),
        ),
        Figure(
            name="tuning, a round",
            unit="seconds",
            planned=planned.get("seconds_a_round"),
            measured=_median([row["seconds"]["tuning"] for row in later if "seconds" in row]),
        ),
        *(
            Figure(
                name=name,
                unit="bytes",
                planned=planned.get(key),
                measured=_median([row[key] for row in trained if key in row]),
            )
            for key, name in (
                ("bytes_down", "sent to clients, a round"),
                ("bytes_up", "received from clients, a round"),
            )
        ),
    ]


def text(**values: float | None) -> str:
    """Figures by key as JSON, as kept in a run folder."""
    return json.dumps(values, indent=2) + "\n"


def _median(values: Sequence[float]) -> float | None:
    return median(values) if values else None


def _read(path: Path) -> dict[str, float]:
    try:
        found = json.loads(path.read_text(encoding="utf8"))
        return {str(key): float(value) for key, value in found.items() if isinstance(value, int | float)}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, AttributeError) as error:
        raise FolderError(f"{path} is damaged; remove it, since no round depends on it") from error
