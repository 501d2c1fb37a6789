"""Send each number of a change as a float16: half the bytes, and eleven significant bits.

Rounded to the nearest, so an error is at most 2^-11 of a number, or 3e-8 for one below 6.1e-5 in size; a
number above 65,504 becomes infinite, and the server refuses the update. What the algorithm sends beside the
change travels as it is. The broadcast stays in full precision.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np

from shepherd.config import Table
from shepherd.core import Adapter, Draws, Original, Payload, Transform, Update
from shepherd.errors import UpdateRefused
from shepherd.transforms.clip import clipped

NAME = "float16"


class Config(Table):
    """This transform has no keys."""


def build(config: Config) -> Transform:
    """Build both halves: shorten each number at the client, and make a float32 of it on arrival."""

    def on_client(update: Update, public: Any, draws: Draws) -> Update:
        with np.errstate(over="ignore"):  # the server refuses what is infinite
            short = {name: tensor.astype(np.float16) for name, tensor in update.delta.items()}
        return replace(update, delta=Payload(short))

    def decode(update: Update, state: Any, original: Original) -> Update:
        for name, tensor in update.delta.items():
            if tensor.dtype != np.float16:
                raise UpdateRefused(
                    f"tensor {name} of its change is {tensor.dtype}, and the transform {NAME} sends float16;"
                    " apply the run file's transforms at the client"
                )
        found = replace(update, delta=Adapter(update.delta))
        return clipped(found, original.norm) if original.norm < math.inf else found

    return Transform(on_client=on_client, decode=decode)
