"""Clip: nothing that leaves a client is longer than `norm`, and the server takes nothing longer.

    (delta, extra)  <-  (delta, extra) * min(1, norm / ||(delta, extra)||)

One Euclidean norm over every tensor of `delta` and `extra` together, since both leave the client
(law 7). Weight and metrics are not touched: a mechanism that adds noise must own them too.
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

ROUNDING = 1 - 2**-22  # a float32 product rounds up by at most 2**-24, twice: the result is never longer
ALLOWANCE = 1 + 2**-20
"""Of a length on arrival: two machines add up the same squares in another order."""


class Config(Table):
    norm: Annotated[float, Field(gt=0.0, allow_inf_nan=False)] = 1.0
    """The longest that a client's change may be."""


def build(config: Config) -> Transform:
    """Clip on the client, and verify it on arrival; the server has nothing to undo."""

    def on_client(update: Update, public: Any, draws: Draws) -> Update:
        length = _length(update)
        if not config.norm < length < math.inf:  # what is not finite is for the server to refuse
            return update
        scale = ROUNDING * config.norm / length
        return replace(update, delta=update.delta.times(scale), extra=update.extra.times(scale))

    def on_arrival(update: Update, state: Any) -> Update:
        length = _length(update)
        if not length <= ALLOWANCE * config.norm:
            raise UpdateRefused(
                f"its change has length {length:.6g}, and the transform clip lets {config.norm:g} through;"
                " clip it at the client as the run file says"
            )
        return update

    return Transform(on_client=on_client, on_arrival=on_arrival)


def _length(update: Update) -> float:
    return math.hypot(update.delta.norm(), update.extra.norm())
