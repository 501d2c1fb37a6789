"""Bound each update's norm at the running median of all updates' norms, at the server.

    delta_k  <-  delta_k * min(1, factor * m / ||delta_k||)

with m the running median of the norms as they arrive, which is what the server can check; the client does
nothing. Sun et al., arXiv 1911.07963, bound norms by a constant to stand backdoors. Norms are not private
here, and no client is told the bound.

An update's norm is noted on arrival as its steps over `EDGES`, 1 where it is at most the edge, in a tensor of
`extra`. The plain mean of these over the accepted updates is the round's distribution function, whatever the
aggregation makes of the updates: each client counts once, so less than half of them cannot move the median
beyond the others' norms. A single pass is enough. The running one is

    F  <-  memory F + (1 - memory) F_round,    m = the first edge where F >= 1/2

Limits: it bounds how far a bad client can push, and does not stop one that pushes a little each round. m is
exact to a tenth. With `factor` = 1 half of the honest updates are made shorter, too. Before the first round
no norm is known, so `first` bounds it or nothing does. The norm is that of the factors' changes.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, Strict

from shepherd.config import PositiveFloat, Table
from shepherd.core import Context, Draws, Payload, Transform, Update

WITHIN = "norm_bound.within"
"""The tensor of `extra` with the steps of an update's norm, in {0, 1}."""
EDGES: NDArray[np.float64] = 10.0 ** np.arange(-8.0, 8.0, 1 / 24)
"""Norms, a tenth apart; a longer one is counted as above all."""
EDGES.flags.writeable = False


class Config(Table):
    factor: PositiveFloat = 1.0
    """Largest norm, as a multiple of the running median."""
    memory: Annotated[float, Strict(), Field(ge=0.0, lt=1.0)] = 0.5
    """Share of the earlier rounds in the running median; 0 goes by the round before alone."""
    first: PositiveFloat | None = None
    """Largest norm in the first round, before which no norm is known; the default is none."""


def build(config: Config) -> Transform:
    """Build the server half."""

    def init(context: Context) -> dict[str, NDArray[np.float64]]:
        bound = np.inf if config.first is None else config.first
        return {"bound": np.array(bound), "within": np.zeros(0)}

    def on_arrival(update: Update, state: Any) -> Update:
        length, bound = update.delta.norm(), float(state["bound"])
        if length > bound:
            update = replace(update, delta=update.delta.times(bound / length))
        steps = (length <= EDGES).astype(np.float32)
        return replace(update, extra=Payload({**update.extra, WITHIN: steps}))

    def on_server(update: Update, state: Any, draws: Draws) -> tuple[Update, Any]:
        rest = {name: tensor for name, tensor in update.extra.items() if name != WITHIN}
        bare = replace(update, extra=type(update.extra)(rest))
        if not update.clients:
            return bare, state
        now = update.extra[WITHIN].astype(np.float64)
        before = state["within"] if len(state["within"]) else now
        within = config.memory * before + (1 - config.memory) * now
        return bare, {"bound": np.array(config.factor * median(within)), "within": within}

    return Transform(
        init=init,
        on_arrival=on_arrival,
        on_server=on_server,
        adds={WITHIN: EDGES.shape},
        counts=(WITHIN,),
        needs_each=True,
    )


def median(within: NDArray[np.float64]) -> float:
    """The first edge that at least half of the norms are within; inf if that is none.

    >>> median((0.5 <= EDGES).astype(float)) / 0.5 < 1.1
    True
    """
    return float(next(iter(EDGES[within >= 0.5]), np.inf))
