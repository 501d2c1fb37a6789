"""FedProx: a proximal term pulls each client's adapter towards the broadcast.

Client k descends on

    f_k(w) + (mu / 2) ||w - w_t||^2,    whose gradient is    grad f_k(w) + mu (w - w_t)

where w_t is the broadcast; the server is FedAvg's. Li et al., arXiv 1812.06127.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from shepherd.algorithms import fedavg
from shepherd.config import NonNegativeFloat, Table
from shepherd.core import Algorithm, Broadcast, Step


class Config(Table):
    mu: NonNegativeFloat = 0.01
    """Strength of the proximal term; 0 is FedAvg."""


def build(config: Config) -> Algorithm:
    """Build FedAvg with the proximal term in the client's gradient."""

    def correct(
        name: str, grad: Any, param: Any, broadcast: Broadcast, memory: Mapping[str, Any], step: Step
    ) -> Any:
        return grad + config.mu * (param - broadcast.adapter[name])  # (K, ...) - (...)

    return replace(fedavg.ALGORITHM, correct=correct)
