"""Weighted sums of tensors in float64, of which one payload is held at a time."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shepherd.core.adapter import Adapter
from shepherd.core.messages import Update
from shepherd.core.payload import require_same_layout
from shepherd.errors import FederationError

BLOCK = 64 * 1024
"""Numbers that are added at once: their float64 copies stay in a core's cache, and small tensors are added
together."""


class Sums:
    """The sum of weight times tensor, by name: `add` each payload, then ask for `mean`.

    Sums are in the order in which payloads are added: the same order gives the same bits.
    """

    def __init__(self) -> None:
        self._shapes: dict[str, tuple[int, ...]] | None = None
        self._total: NDArray[np.float64] = np.empty(0)  # all tensors, one after another
        self._block: NDArray[np.float64] = np.empty(0)

    def add(self, tensors: Mapping[str, NDArray[Any]], weight: float) -> None:
        """Add weight times each tensor.

        Raises:
            AdapterError: names or shapes differ from those of the first payload.
        """
        shapes = {name: tensor.shape for name, tensor in tensors.items()}
        if self._shapes is None:
            self._shapes = shapes
            self._total = np.zeros(sum(tensor.size for tensor in tensors.values()))
            self._block = np.empty(min(BLOCK, len(self._total)))
        if shapes != self._shapes:
            require_same_layout(self._sums(), tensors, "an update")
        start = filled = 0
        for name in self._shapes:  # whatever the order in this payload
            flat, taken = tensors[name].reshape(-1), 0
            while taken < len(flat):
                count = min(len(self._block) - filled, len(flat) - taken)
                self._block[filled : filled + count] = flat[taken : taken + count]
                taken, filled = taken + count, filled + count
                if filled == len(self._block):
                    self._add_block(start, filled, weight)
                    start, filled = start + filled, 0
        self._add_block(start, filled, weight)

    def _add_block(self, start: int, count: int, weight: float) -> None:
        """Multiply and add: whole arrays between the two would not stay in the cache."""
        scaled, total = self._block[:count], self._total[start : start + count]
        scaled *= weight
        total += scaled

    def _sums(self) -> dict[str, NDArray[np.float64]]:
        """The sum of each tensor, as views."""
        found, start = {}, 0
        for name, shape in (self._shapes or {}).items():
            stop = start + math.prod(shape)
            found[name], start = self._total[start:stop].reshape(shape), stop
        return found

    def mean(self, weight: float) -> Adapter:
        """The sums divided by the sum of the weights, in float32."""
        with np.errstate(over="ignore"):  # the round loop refuses what is not finite, by name
            return Adapter({name: total / weight for name, total in self._sums().items()})


def require_weight(update: Update) -> None:
    """Raise FederationError, naming the client, unless a weight is a finite number of at least 0."""
    if not 0 <= update.weight < math.inf:
        raise FederationError(
            f"client {update.client} has weight {update.weight:g} in round {update.round + 1}; a weight is a"
            " finite number of at least 0: correct how the client computes it"
        )


def require_some(round: int, weight: float) -> None:
    """Raise FederationError unless the weights of a round sum to more than 0: a mean of nothing is not 0."""
    if not weight > 0:
        raise FederationError(
            f"round {round + 1} has no update with a weight above zero; "
            "give its clients examples, or set federation.weights"
        )
