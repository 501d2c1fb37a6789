"""The audit of a round: how far apart the clients' updates are, and what the aggregation made of them.

With dW_k the change of the weights BA that client k sends, p_k its weight in the mean, M = sum_k p_k dW_k,
W the broadcast's products and D the change of the products that the aggregation returns, over all LoRA
modules,

    spread       =  sqrt(sum_k p_k ||dW_k - M||^2) / ||M||
    energy kept  =  1 - ||M - D||^2 / ||W + M||^2
    cosine_k     =  <dW_k, D> / (||dW_k|| ||D||)

All three are of products, so they do not depend on the basis that a client's factors are in. Where the
result is the exact mean of the products cut to a rank, the energy kept is the share of its squared singular
values that the cut keeps; of averaged factors it is 1 - gap^2. It is below 0 if the result is worse than
none. The ranks that a client does not train count as they were sent, also where it is sent its own alone, so
what such a rule cuts off is a loss of energy.

One pass and memory of a fixed size: of an update a vector of `product_sketch.WIDTH` numbers is kept (law 5).
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from shepherd.core.adapter import Adapter
from shepherd.core.messages import Update
from shepherd.core.product_sketch import WIDTH, ProductSketch, Vector
from shepherd.core.randomness import Draws

MAX_BY_CLIENT = 256
"""Most clients of a round whose cosines are told apart; of a larger cohort there is the mean cosine alone."""
COLUMNS = ("spread", "energy_kept", "cosine")
"""Names of the columns in rounds.jsonl."""


class RoundAudit:
    """The audit of one round: `add` each update, then ask for `figures` and `cosines` of the result.

    Args:
        adapter: the broadcast.
        draws: random numbers for the sketch; the same draws give the same bits.
        rank: rank of every matrix's factors, if some tensors stack experts; None if none does.
        width: numbers that are kept of an update.
    """

    def __init__(self, adapter: Adapter, draws: Draws, rank: int | None = None, width: int = WIDTH) -> None:
        self._sketch = ProductSketch(adapter, draws, rank, width)
        self._whole = self._sketch.whole()
        self._weight = 0.0
        self._mean: Vector = np.zeros_like(self._whole)
        self._squares = 0.0  # sum of w ||x - mean||^2
        self._directions: Vector = np.zeros_like(self._whole)  # sum of x / ||x||
        self._moved = 0
        self._kept: dict[str, NDArray[np.float32]] | None = {}

    def add(self, update: Update) -> None:
        """Include one update, with its weight."""
        vector = self._sketch.change(update.delta)
        self._weight += update.weight
        off = vector - self._mean
        self._mean = self._mean + off * (update.weight / self._weight)
        self._squares += update.weight * float(np.vdot(off, vector - self._mean))
        length = float(np.linalg.norm(vector))
        if length:
            self._directions = self._directions + vector / length
            self._moved += 1
        if len(update.clients) != 1:
            self._kept = None
        if self._kept is not None:
            self._kept[update.client] = (vector / (length or 1.0)).astype(np.float32)
            if len(self._kept) > MAX_BY_CLIENT:
                self._kept = None

    def figures(self, result: Update) -> Mapping[str, float]:
        """The figures of the round, by their column in rounds.jsonl; none of a round without an update.

        One that has no value is not a number: the spread around a mean of zero, or the cosine with a result
        of zero.
        """
        if not self._weight:
            return {}
        change = self._sketch.change(result.delta)
        whole = self._whole + self._mean
        missed, length = self._mean - change, float(np.linalg.norm(change))
        along = float(np.vdot(self._directions, change))
        return {
            "spread": _ratio(math.sqrt(self._squares / self._weight), float(np.linalg.norm(self._mean))),
            "energy_kept": 1.0 - _ratio(float(np.vdot(missed, missed)), float(np.vdot(whole, whole))),
            "cosine": _ratio(along, length * self._moved),
        }

    def cosines(self, result: Update) -> Mapping[str, float]:
        """The cosine of each client's change with the result's; empty if there are more than MAX_BY_CLIENT.

        A client that changed nothing, or any if the result is no change, has none.
        """
        change = self._sketch.change(result.delta)
        length = float(np.linalg.norm(change))
        kept = self._kept if self._kept and length else {}
        along = {client: float(vector @ change) / length for client, vector in kept.items() if vector.any()}
        return {client: max(-1.0, min(1.0, cosine)) for client, cosine in along.items()}


def _ratio(above: float, below: float) -> float:
    return above / below if below else math.nan
