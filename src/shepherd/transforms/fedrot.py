"""FedRot-LoRA: each client rotates its factors towards the broadcast's before it sends them.

    R  =  the rotation nearest to (1 - strength) I + strength R*,    A_k  <-  R^T A_k,    B_k  <-  B_k R

R* is the rotation that brings the client's A nearest to the broadcast's A in rounds 1, 3, 5, ..., and its B
nearest to the broadcast's B in the others (orthogonal Procrustes, from the SVD of an (r, r) matrix). R is
orthogonal at any strength, so the client's own product B_k A_k stays the same, up to float32. Two clients
that learned the same in turned factors cancel each other when A and B are averaged apart; turned back, they
add up, so the gap of `shepherd.core.factor_gap` shrinks. The server half is empty: means, secure sums and
server optimisers work as they did. Zhang et al., arXiv 2602.23638.

Only rotations are taken, not reflections, so that there is a way from the identity to each. Where the
reference does not say how to turn (B is zero before the first round; some directions of it may be later),
nothing is turned.

Limits: it needs A and B of each update, and changes the length of an update, so it comes before `clip`. It
does nothing for an aggregation of the products themselves, which no rotation changes.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from shepherd.config import Table
from shepherd.core import Adapter, Broadcast, Context, Draws, Transform, Update, corner, not_finite, product
from shepherd.core.experts import experts_of, joined_a, joined_b, split_a, split_b
from shepherd.core.factor_gap import pairs

Matrices = NDArray[np.float64]
FLAT = 1e-9
"""Overlaps this small, relative to all of them, are rounding: their directions are not turned."""


class Config(Table):
    strength: Annotated[float, Field(ge=0.0, le=1.0)] = 0.5
    """How far to turn: 0 is not at all, 1 is all the way to the nearest factors."""


def build(config: Config) -> Transform:
    """Build the transform: rotate at the client; the server has nothing to undo."""

    def relative(update: Update, public: Any, draws: Draws, broadcast: Broadcast) -> Update:
        if any(not_finite(update.delta)):  # the server refuses it, by name
            return update
        rank = int(public["rank"])
        return replace(update, delta=turned(update, broadcast, config.strength, rank or None))

    return Transform(init=init, public=lambda state: state, relative=relative, needs_both_factors=True)


def init(context: Context) -> dict[str, NDArray[np.int64]]:
    """Keep the rank, by which a client sees tensors that stack experts."""
    return {"rank": np.array(context.rank or 0)}


def turned(update: Update, broadcast: Broadcast, strength: float, rank: int | None) -> Adapter:
    """The change of a client whose factors are turned towards the broadcast's."""
    tensors: dict[str, NDArray[Any]] = dict(update.delta)
    for pair in pairs(update.delta):
        change_a, change_b = update.delta[pair.a], update.delta[pair.b]
        experts = experts_of(change_a, rank)
        was_a = split_a(corner(broadcast.adapter[pair.a], change_a.shape), experts)  # (E, r, in)
        was_b = split_b(corner(broadcast.adapter[pair.b], change_b.shape), experts)  # (E, out, r)
        a, b = was_a + split_a(change_a, experts), was_b + split_b(change_b, experts)
        overlap = b.swapaxes(1, 2) @ was_b if broadcast.round % 2 else a @ was_a.swapaxes(1, 2)  # (E, r, r)
        turn = partial_turn(nearest_rotation(overlap), strength)
        tensors[pair.a] = joined_a(turn.swapaxes(1, 2) @ a - was_a)
        tensors[pair.b] = joined_b(b @ turn - was_b)
    return Adapter(tensors)


def nearest_rotation(overlap: Matrices) -> Matrices:
    """The rotation R with the largest trace of R^T M, for each M (..., r, r); the identity where M is zero.

    >>> nearest_rotation(np.array([[0.0, -2.0], [2.0, 0.0]])).round().tolist()
    [[0.0, -1.0], [1.0, 0.0]]
    """
    size = np.linalg.norm(overlap, axis=(-2, -1), keepdims=True)
    # of all rotations that are as near, the one nearest to the identity
    settled = overlap + np.where(size > 0, FLAT * size, 1.0) * np.eye(overlap.shape[-1])
    u, _, v = product.svd(settled)
    last = u[..., -1] * np.linalg.det(u @ v)[..., None]
    nearest: Matrices = np.concatenate([u[..., :-1], last[..., None]], axis=-1) @ v
    return nearest


def partial_turn(rotation: Matrices, strength: float) -> Matrices:
    """The rotation nearest to a weighted mean of the identity and this one."""
    return nearest_rotation((1 - strength) * np.eye(rotation.shape[-1]) + strength * rotation)
