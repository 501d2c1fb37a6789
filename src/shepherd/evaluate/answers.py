"""Check answers before and after training, for examples that have a check."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from shepherd.data.examples import Example
from shepherd.evaluate.metrics import right

Row = dict[str, Any]


def checked(
    examples: Sequence[Example],
    before: Sequence[str],
    after: Sequence[str],
) -> list[Row]:
    """Make one row per example: the instruction, a right answer, both answers, and whether each is right."""
    rows = []
    for example, first, last in zip(examples, before, after, strict=True):
        rows.append(
            {
                "category": example.category,
                "instruction": example.instruction,
                "context": example.context,
                "expected": example.response,
                "before": first,
                "after": last,
                "right_before": right.score(first, example),
                "right_after": right.score(last, example),
            }
        )
    return rows


def by_category(rows: Sequence[Row]) -> dict[str, tuple[float, float]]:
    """Shares of right answers before and after, by category.

    >>> by_category([{"category": "qa", "right_before": False, "right_after": True}])
    {'qa': (0.0, 1.0)}
    """
    groups: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        groups[row["category"]].append(row)
    return {category: _shares(group) for category, group in sorted(groups.items())}


def _shares(rows: Sequence[Row]) -> tuple[float, float]:
    return (
        sum(row["right_before"] for row in rows) / len(rows),
        sum(row["right_after"] for row in rows) / len(rows),
    )
