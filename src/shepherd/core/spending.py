"""Privacy budget that is spent: noise on the sums of a number of steps, and who is in each sum.

A unit is what is protected: a client with all of its examples, or one example. A step adds the clipped
contributions of some units and noise, Gaussian or, on sums of whole numbers, Skellam. What one step reveals
of a unit depends on the noise alone; what many reveal depends on how the units of a step are drawn, too.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from shepherd.errors import SettingsError


@dataclass(frozen=True, slots=True, kw_only=True)
class Poisson:
    """Each unit is in each step with the same chance, independently of all others."""

    chance: float
    """In (0, 1]; with 1, every unit is in every step."""

    def __post_init__(self) -> None:
        if not 0.0 < self.chance <= 1.0:  # false for NaN, too
            raise SettingsError(f"the chance to be in a step is {self.chance}; give one in (0, 1]")


@dataclass(frozen=True, slots=True, kw_only=True)
class FixedSize:
    """Each step draws `size` of the `of` units, uniformly and without replacement."""

    size: int
    of: int

    def __post_init__(self) -> None:
        if not 1 <= self.size <= self.of:
            raise SettingsError(f"a step takes {self.size} of {self.of} units; take from 1 to all of them")


@dataclass(frozen=True, slots=True, kw_only=True)
class Turns:
    """Each unit is in at most one of any `every` steps in a row, and who is when is not random."""

    every: int

    def __post_init__(self) -> None:
        if self.every < 1:
            raise SettingsError(f"a unit is in one of every {self.every} steps; give 1 or more")


@dataclass(frozen=True, slots=True, kw_only=True)
class Shuffled:
    """Each epoch of `steps` steps has each unit in exactly one of them, drawn at random."""

    steps: int

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise SettingsError(f"an epoch has {self.steps} steps; give 1 or more")


Sampling = Poisson | FixedSize | Turns | Shuffled
"""How the units of a step are drawn."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Spending:
    """What a number of steps spend."""

    noise: float
    """Noise multiplier: the standard deviation of the noise as a multiple of the norm that one unit's
    contribution is clipped to, above 0 and finite."""
    sampling: Sampling
    steps: int
    """Number of steps, 0 or more."""
    levels: int = 0
    """For Skellam noise on whole numbers: how many steps of their grid the norm is long. 0 for Gaussian
    noise."""

    def __post_init__(self) -> None:
        if not 0.0 < self.noise < math.inf:  # false for NaN, too
            raise SettingsError(f"the noise multiplier is {self.noise}; give a number above 0")
        if self.steps < 0:
            raise SettingsError(f"the number of steps is {self.steps}; give 0 or more")
        if self.levels < 0:
            raise SettingsError(f"the norm is {self.levels} steps of a grid long; give 0 or more")
