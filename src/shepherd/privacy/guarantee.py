"""What trainings have spent of privacy: the epsilon and the delta of one, and of several together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from math import fsum
from typing import Any

from shepherd.io.phrases import epsilon_text


@dataclass(frozen=True, slots=True)
class Guarantee:
    """An (epsilon, delta) guarantee: Dwork and Roth (2014), definition 2.4."""

    epsilon: float | None
    """None where there is no bound."""
    delta: float

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> Guarantee:
        """That of a ledger, or of a row of the log."""
        return cls(row["epsilon"], row["delta"])

    def text(self, digits: int = 3) -> str:
        """It in words, with so many digits of epsilon.

        >>> Guarantee(1.25, 1e-5).text()
        'epsilon 1.25 at delta 1e-05'
        """
        return f"epsilon {epsilon_text(self.epsilon, digits)} at delta {self.delta:.3g}"

    def row(self) -> dict[str, float | None]:
        """It as JSON has it."""
        return asdict(self)


def composed(each: Sequence[Guarantee]) -> Guarantee:
    """What holds for all of them together: epsilons and deltas add up (basic composition, theorem 3.16).

    >>> composed([Guarantee(1.0, 0.25), Guarantee(0.5, 0.125)])
    Guarantee(epsilon=1.5, delta=0.375)
    """
    known = [one.epsilon for one in each if one.epsilon is not None]
    return Guarantee(fsum(known) if len(known) == len(each) else None, fsum(one.delta for one in each))
