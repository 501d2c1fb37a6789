"""Held-out response loss: a number per example, then means by category and by client."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldOutLoss:
    """Response loss in nats a token: over all held-out examples, by category, and by client.

    A category's loss is the mean over its trained tokens. `loss` is the mean over categories, so that
    categories with long responses do not dominate. A client's loss is the mean of the categories' losses
    weighted by the client's own examples: the expected loss on data like that client's.
    """

    loss: float
    category: Mapping[str, float]
    client: Mapping[str, float]

    @property
    def worst_client(self) -> float | None:
        """The highest loss of a client; None if no client has one."""
        return max(self._known(), default=None)

    @property
    def spread(self) -> float | None:
        """Standard deviation of the clients' losses, each client once; None if no client has one."""
        return float(np.std(self._known())) if self._known() else None

    def row(self) -> dict[str, Any]:
        """Value of `heldout` in rounds.jsonl."""
        by = {"category": dict(self.category), "client": dict(self.client)}
        return {"loss": self.loss, **by, "worst_client": self.worst_client, "spread": self.spread}

    def _known(self) -> list[float]:
        return [loss for loss in self.client.values() if not math.isnan(loss)]


def summarise(
    sums: NDArray[np.float64],
    counts: NDArray[np.int64],
    categories: Sequence[str],
    clients: Mapping[str, Mapping[str, int]],
) -> HeldOutLoss:
    """Summarise the losses of held-out examples by category and by client.

    Args:
        sums: each example's summed loss in nats, (n,).
        counts: each example's number of trained tokens, (n,).
        categories: each example's category, (n,).
        clients: client -> number of its training examples in each category.
    """
    names = np.array(categories)
    by_category = {
        str(name): float(sums[names == name].sum() / counts[names == name].sum()) for name in np.unique(names)
    }
    return HeldOutLoss(
        loss=float(np.mean(list(by_category.values()))),
        category=by_category,
        client={client: _mean_over_mix(by_category, mix) for client, mix in clients.items()},
    )


def _mean_over_mix(losses: Mapping[str, float], mix: Mapping[str, int]) -> float:
    """Mean of the categories' losses weighted by `mix`; NaN if none of its categories is held out."""
    known = {category: count for category, count in mix.items() if category in losses}
    total = sum(known.values())
    return sum(losses[c] * n for c, n in known.items()) / total if total else float("nan")


def stratified_subset(categories: Sequence[str], most: int) -> NDArray[np.int64]:
    """Choose at most `most` indices evenly over the categories, the first of each; ascending.

    Held-out examples are in the order of a draw (`data.holdout.HoldOut`), so the first are a fair sample,
    also over clients; shuffle other sequences before.

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
