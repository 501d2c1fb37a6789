"""Held-out response loss: one number an example, then means by category and by client."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldOutLoss:
    """Response loss in nats a token: over all held-out examples, by category, and by client.

    A category's loss is the mean over its trained tokens. `loss` is the mean over categories, so that
    long-winded categories do not drown the others. A client's is the mean of the categories' losses
    weighted by the client's own examples: what the model would lose on data like that client's.
    """

    loss: float
    category: Mapping[str, float]
    client: Mapping[str, float]

    def row(self) -> dict[str, Any]:
        """As it stands in rounds.jsonl."""
        return {"loss": self.loss, "category": dict(self.category), "client": dict(self.client)}


def summarise(
    sums: NDArray[np.float64],
    counts: NDArray[np.int64],
    categories: Sequence[str],
    clients: Mapping[str, Mapping[str, int]],
) -> HeldOutLoss:
    """From each example's summed loss (n,) and its trained tokens (n,).

    Args:
        categories: each held-out example's category.
        clients: how many examples of each category a client trains on.
    """
    names = np.array(categories)
    by_category = {
        str(name): float(sums[names == name].sum() / counts[names == name].sum()) for name in np.unique(names)
    }
    return HeldOutLoss(
        loss=float(np.mean(list(by_category.values()))),
        category=by_category,
        client={client: _mixed(by_category, mix) for client, mix in clients.items()},
    )


def _mixed(losses: Mapping[str, float], mix: Mapping[str, int]) -> float:
    """NaN where none of the client's categories is held out."""
    known = {category: count for category, count in mix.items() if category in losses}
    total = sum(known.values())
    return sum(losses[c] * n for c, n in known.items()) / total if total else float("nan")


def stratified_subset(categories: Sequence[str], most: int) -> NDArray[np.int64]:
    """At most `most` places, evenly over the categories, the first of each.

    Held-out examples stand in the order of a draw (`data.holdout.HoldOut`), so the first are a fair sample of
    them, evenly over clients too; others are to be shuffled before.

    >>> stratified_subset(["a", "a", "a", "b"], 3).tolist()
    [0, 1, 3]
    """
    places: dict[str, list[int]] = {}
    for place, category in enumerate(categories):
        places.setdefault(category, []).append(place)
    taken: list[int] = []
    for turn in range(max((len(rows) for rows in places.values()), default=0)):
        for rows in places.values():
            if turn < len(rows) and len(taken) < most:
                taken.append(rows[turn])
    return np.array(sorted(taken), dtype=np.int64)
