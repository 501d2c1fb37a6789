"""Seeds and draws: reproducible ones from a seed, and unpredictable ones from the operating system."""

from __future__ import annotations

import hashlib
import secrets
from dataclasses import dataclass
from typing import Protocol

import numpy as np

ENTROPY_BITS = 256
"""Entropy from the operating system that seeds each generator of `FromSystem`."""


def seed_for(seed: int, *path: int | str) -> int:
    """A seed in [0, 2**63) for one purpose, independent of every other path from the same seed.

    >>> seed_for(0, 3, "cohort") == seed_for(0, 3, "cohort") != seed_for(0, 3, "noise")
    True
    """
    # numpy's integers print otherwise
    plain = (part if isinstance(part, str) else int(part) for part in path)
    text = repr((int(seed), *plain)).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big") >> 1


class Draws(Protocol):
    """A source of random numbers for named purposes."""

    def generator(self, *purpose: int | str) -> np.random.Generator:
        """A generator for one purpose, independent of those for other purposes."""


@dataclass(frozen=True, slots=True)
class Seeded:
    """Reproducible draws from a seed: anyone who knows the seed can repeat them, so they protect nobody.

    >>> a, b = Seeded(1).generator("noise"), Seeded(1).generator("noise")
    >>> float(a.random()) == float(b.random())
    True
    """

    seed: int

    def generator(self, *purpose: int | str) -> np.random.Generator:
        """The generator that the seed gives for this purpose."""
        return np.random.default_rng(seed_for(self.seed, *purpose))


@dataclass(frozen=True, slots=True)
class FromSystem:
    """Draws from the operating system's entropy, which nobody can repeat: for noise that protects people."""

    def seed(self) -> int:
        """A fresh number of ENTROPY_BITS bits."""
        return secrets.randbits(ENTROPY_BITS)

    def generator(self, *purpose: int | str) -> np.random.Generator:
        """A fresh generator; the purpose is ignored."""
        return np.random.default_rng(secrets.randbits(ENTROPY_BITS))


@dataclass(frozen=True, slots=True)
class Scoped:
    """The draws of one round or one part of a chain, independent of all others."""

    draws: Draws
    path: tuple[int | str, ...]

    def generator(self, *purpose: int | str) -> np.random.Generator:
        """A generator for one purpose within this scope."""
        return self.draws.generator(*self.path, *purpose)
