"""A federated method, made of parts that can be combined."""

from __future__ import annotations

from dataclasses import dataclass

from shepherd.core.aggregation import Aggregation
from shepherd.core.algorithm import Algorithm
from shepherd.core.server_optimiser import ServerOptimiser
from shepherd.core.transform import Transform
from shepherd.errors import SettingsError


@dataclass(frozen=True, slots=True, kw_only=True)
class Method:
    """An algorithm, an aggregation, a server optimiser and a transform that fit together.

    Raises:
        SettingsError: two parts are incompatible.
    """

    algorithm: Algorithm
    aggregation: Aggregation
    server: ServerOptimiser
    transform: Transform

    def __post_init__(self) -> None:
        if self.transform.mechanism is not None and not self.aggregation.is_mean:
            raise SettingsError(
                "a transform that spends privacy budget adds its noise to a mean, and this aggregation is"
                ' not a mean; set [aggregation] name = "mean", or remove the transform'
            )
        if self.server.needs_mean and not self.aggregation.is_mean:
            raise SettingsError(
                "this server optimiser requires a mean, and this aggregation is not a mean; set"
                ' [aggregation] name = "mean", or [server] name = "sgd"'
            )
