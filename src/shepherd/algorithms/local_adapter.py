"""An adapter of each client's own beside the common one: both are trained, and the own one stays.

The model of client k is W_0 + s (B A + B_k A_k). The common factors (B, A) start from the broadcast and
their change is sent, as in FedAvg; the own factors (B_k, A_k) of `rank` ranks start from the client's last
visit and are pulled towards zero, so that they hold what the common ones cannot:

    grad of B_k and A_k  <-  grad + penalty * (B_k, A_k)

The penalty is Ditto's proximal term (Li et al., arXiv 2012.04221) on the difference between a client's model
and the common one, which is here the own adapter itself. Unlike Ditto, which trains the two models apart at
twice the cost, both are trained in one pass. The server's adapter is a model by itself.

Limits: parameters that stack experts' matrices (`adapter.target_parameters`) are refused, since their rows
are in an order of experts that the own ranks would break.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from shepherd.algorithms import fedavg
from shepherd.config import NonNegativeFloat, PositiveInt, Table
from shepherd.core import (
    Adapter,
    Algorithm,
    Array,
    Broadcast,
    ClientInfo,
    LocalResult,
    Payload,
    Step,
    seed_for,
)
from shepherd.core.adapter import is_a


class Config(Table):
    rank: PositiveInt = 4
    """Rank of each client's own adapter."""
    penalty: NonNegativeFloat = 0.01
    """Strength of the pull of the own adapter towards zero."""


def build(config: Config) -> Algorithm:
    """Build the algorithm."""

    def start(broadcast: Broadcast, memory: Payload, client: ClientInfo) -> Adapter:
        own = memory or fresh(broadcast, client.name, config.rank)
        return Adapter({n: _beside(n, tensor, own[n]) for n, tensor in broadcast.adapter.items()})

    def correct(
        name: str, grad: Any, param: Any, broadcast: Broadcast, memory: Mapping[str, Any], step: Step
    ) -> Any:
        own = param * 0.0  # (K, r + rank, in) or (K, out, r + rank)
        place = _own(name, broadcast.adapter[name].shape)
        own[(slice(None), *place)] = param[(slice(None), *place)]
        return grad + config.penalty * own

    def remember(memory: Payload, broadcast: Broadcast, result: LocalResult) -> tuple[Payload, Payload]:
        kept = {n: tensor[_own(n, broadcast.adapter[n].shape)] for n, tensor in result.local.items()}
        return Payload(kept), Payload()

    return replace(
        fedavg.ALGORITHM,
        start=start,
        correct=correct,
        remember=remember,
        personal=True,
        adds_ranks=config.rank,
        memory_is_basis_free=True,
    )


def fresh(broadcast: Broadcast, client: str, rank: int) -> dict[str, Array]:
    """The own adapter before the first visit: A from U(-1/sqrt(in), 1/sqrt(in)), B zero."""
    own = {}
    for name, tensor in broadcast.adapter.items():
        if is_a(name):
            bound = 1 / np.sqrt(tensor.shape[1])
            rng = np.random.default_rng(seed_for(broadcast.seed, "own adapter", client, name))
            own[name] = rng.uniform(-bound, bound, (rank, tensor.shape[1])).astype(np.float32)
        else:
            own[name] = np.zeros((tensor.shape[0], rank), np.float32)
    return own


def _beside(name: str, common: Array, own: Array) -> Array:
    return np.concatenate([common, own], axis=0 if is_a(name) else 1)


def _own(name: str, common: tuple[int, ...]) -> tuple[slice, slice]:
    """Where the own ranks are in a factor whose common part has this shape."""
    if is_a(name):
        return slice(common[0], None), slice(None)
    return slice(None), slice(common[1], None)
