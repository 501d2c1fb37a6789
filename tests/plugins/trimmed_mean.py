"""The coordinate-wise trimmed mean, which few bad clients cannot move far (Yin et al., arXiv 1803.01498)."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from shepherd.config import PositiveInt, Table
from shepherd.core import Adapter, Aggregation, Context, ServerState, Update


class Config(Table):
    drop: PositiveInt = 1
    """Values of each coordinate that are dropped at either end."""


def build(config: Config) -> Aggregation:
    """Of each coordinate's values, the plain mean of those in the middle; weights do not count."""

    def combine(state: ServerState, updates: Iterable[Update], context: Context) -> Update:
        held = list(updates)
        delta = {
            name: np.sort(np.stack([u.delta[name] for u in held]), axis=0)[
                config.drop : len(held) - config.drop
            ]
            for name in held[0].delta
        }
        return Update(
            round=state.round,
            delta=Adapter({name: middle.mean(axis=0, dtype=np.float64) for name, middle in delta.items()}),
            weight=float(len(held)),
            clients=tuple(client for update in held for client in update.clients),
        )

    return Aggregation(combine=combine, streams=False, is_mean=False, smallest_cohort=2 * config.drop + 1)
