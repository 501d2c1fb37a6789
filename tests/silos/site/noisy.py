"""A mechanism for tests: it says what it spends, and adds nothing."""

from __future__ import annotations

from shepherd.config import PositiveFloat, Table
from shepherd.core import Mechanism, Sampling, Transform
from shepherd.core.spending import Spending, Turns
from shepherd.errors import SettingsError


class Config(Table):
    noise: PositiveFloat = 1.0
    in_turns: bool = False


def build(config: Config) -> Transform:
    def spent(sampling: Sampling, rounds: int) -> Spending:
        if config.in_turns and not isinstance(sampling, Turns):
            raise SettingsError("it needs clients that take turns")
        return Spending(noise=config.noise, sampling=sampling, steps=rounds)

    return Transform(mechanism=Mechanism(spent=spent))
