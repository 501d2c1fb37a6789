"""Top-k sparsification of what a client sends (Aji and Heafield, arXiv 1704.05021), as a transform.

Of each tensor the k entries of the largest size travel, as their places (uint32) and their values (float16).
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shepherd.config import PositiveShare, Table
from shepherd.core import Adapter, Array, Context, Draws, Payload, Transform, Update

PLACES, VALUES = ".places", ".values"


class Config(Table):
    share: PositiveShare = 0.1
    """Share of each tensor's entries that travel."""


def build(config: Config) -> Transform:
    """Send the largest entries of each tensor."""

    def init(context: Context) -> dict[str, Any]:
        return {name: np.array(shape) for name, shape in context.layout.items()}

    def on_client(update: Update, public: Any, draws: Draws) -> Update:
        coded = {}
        for name, tensor in update.delta.items():
            flat = tensor.ravel()
            places = np.sort(np.argsort(-abs(flat), kind="stable")[: math.ceil(config.share * flat.size)])
            coded[name + PLACES] = places.astype(np.uint32)
            coded[name + VALUES] = _shortened(flat[places])
        return replace(update, delta=Payload(coded))

    def on_arrival(update: Update, state: Any) -> Update:
        dense = {}
        for name in (each.removesuffix(PLACES) for each in update.delta if each.endswith(PLACES)):
            dense[name] = np.zeros(tuple(state[name]), np.float32)
            dense[name].ravel()[update.delta[name + PLACES]] = update.delta[name + VALUES]
        return replace(update, delta=Adapter(dense))

    return Transform(init=init, on_client=on_client, on_arrival=on_arrival)


def _shortened(values: Array) -> NDArray[np.float16]:
    """As float16, rounded towards zero: a transform before this one may have bounded the length."""
    near = values.astype(np.float16)
    return np.where(abs(near) > abs(values), np.nextafter(near, np.float16(0)), near)
