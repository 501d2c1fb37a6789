"""A federated method: a value made of parts that can be combined."""

from __future__ import annotations

from dataclasses import dataclass

from shepherd.core.aggregation import Aggregation
from shepherd.core.algorithm import Algorithm
from shepherd.core.server_optimiser import ServerOptimiser
from shepherd.core.transform import Transform
from shepherd.errors import SettingsError


@dataclass(frozen=True, slots=True, kw_only=True)
class Method:
    """What a run does: at the client, on the way, with the cohort's updates, and with the adapter.

    Raises:
        SettingsError: two parts do not go together.
    """

    algorithm: Algorithm
    aggregation: Aggregation
    server: ServerOptimiser
    transform: Transform

    def __post_init__(self) -> None:
        if self.transform.mechanism is not None and not self.aggregation.is_mean:
            raise SettingsError(
                "a transform that spends privacy budget adds its noise to a mean, and this aggregation is"
                ' none; set [aggregation] name = "mean", or leave the transform out'
            )
        if self.server.needs_mean and not self.aggregation.is_mean:
            raise SettingsError(
                "this server optimiser is right only for a mean, and this aggregation is none; set"
                ' [aggregation] name = "mean", or [server] name = "add"'
            )
