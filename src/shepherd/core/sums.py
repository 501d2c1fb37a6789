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

BLOCK = 16 * 1024
"""Numbers that are added at once: they and their float64 copies stay in a core's cache."""


class Sums:
    """The sum of weight times tensor, by name: `add` each payload, then ask for `mean`.

    Sums are in the order in which payloads are added: the same order gives the same bits.
    """

    def __init__(self) -> None:
        self._sums: dict[str, NDArray[np.float64]] = {}
        self._flat: dict[str, NDArray[np.float64]] = {}
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._empty = True
        self._scratch = np.empty(BLOCK)

    def add(self, tensors: Mapping[str, NDArray[Any]], weight: float) -> None:
        """Add weight times each tensor.

        Raises:
            AdapterError: names or shapes differ from those of the first payload.
        """
        if self._empty:
            self._sums = {name: np.zeros(tensor.shape) for name, tensor in tensors.items()}
            self._flat = {name: total.reshape(-1) for name, total in self._sums.items()}
            self._shapes = {name: tensor.shape for name, tensor in tensors.items()}
            self._empty = False
        if {name: tensor.shape for name, tensor in tensors.items()} != self._shapes:
            require_same_layout(self._sums, tensors, "an update")
        for name, tensor in tensors.items():
            self._add(self._flat[name], tensor.reshape(-1), weight)

    def _add(self, total: NDArray[np.float64], tensor: NDArray[Any], weight: float) -> None:
        """Multiply and add block by block: whole arrays between the two would not stay in the cache."""
        if len(total) > BLOCK:
            for start in range(0, len(total), BLOCK):
                end = start + BLOCK
                self._add(total[start:end], tensor[start:end], weight)
            return
        scaled = self._scratch[: len(total)]
        np.copyto(scaled, tensor)
        scaled *= weight
        total += scaled

    def mean(self, weight: float) -> Adapter:
        """The sums divided by the sum of the weights, in float32."""
        with np.errstate(over="ignore"):  # the round loop refuses what is not finite, by name
            return Adapter({name: total / weight for name, total in self._sums.items()})


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
