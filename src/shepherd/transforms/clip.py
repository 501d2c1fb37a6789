"""Clip each update to a Euclidean norm at the client; the server refuses a longer one.

    (delta, extra)  <-  (delta, extra) * min(1, norm / ||(delta, extra)||)

One Euclidean norm over every tensor of `delta` and `extra` together, since both leave the client
(law 7). Weight and metrics are not changed: a mechanism that adds noise must control them too.
McMahan et al., arXiv 1710.06963, flat clipping.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Annotated, Any

from pydantic import Field

from shepherd.config import Table
from shepherd.core import Draws, Transform, Update
from shepherd.errors import UpdateRefused

SCALE_MARGIN = 1 - 2**-22  # a float32 product rounds up by at most 2**-24, twice: the result is never longer
NORM_TOLERANCE = 1 + 2**-20
"""Factor above `norm` that is accepted on arrival: two machines add the same squares in another order."""


class Config(Table):
    norm: Annotated[float, Field(gt=0.0, allow_inf_nan=False)] = 1.0
    """Largest Euclidean norm of a client's change."""


def build(config: Config) -> Transform:
    """Build the transform: clip at the client and verify on arrival; the server has nothing to undo."""

    def on_client(update: Update, public: Any, draws: Draws) -> Update:
        return clipped(update, config.norm)

    def on_arrival(update: Update, state: Any) -> Update:
        require_within(update, config.norm, "clip")
        return update

    return Transform(on_client=on_client, on_arrival=on_arrival, norm=config.norm)


def length_of(update: Update) -> float:
    """The Euclidean norm of all tensors that leave together."""
    return math.hypot(update.delta.norm(), update.extra.norm())


def clipped(update: Update, norm: float) -> Update:
    """The update, made shorter where it is longer than `norm`."""
    length = length_of(update)
    if not norm < length < math.inf:  # the server refuses what is not finite
        return update
    scale = SCALE_MARGIN * norm / length
    return replace(update, delta=update.delta.times(scale), extra=update.extra.times(scale))


def require_within(update: Update, norm: float, name: str) -> None:
    """Raise UpdateRefused unless an update is as short as the transform of this name promises."""
    length = length_of(update)
    if not length <= NORM_TOLERANCE * norm:  # true for NaN, too
        raise UpdateRefused(
            f"its change has norm {length:.6g}, above the {norm:g} that the transform {name} allows;"
            " clip it at the client as the run file says"
        )
