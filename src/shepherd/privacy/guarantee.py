"""What trainings have spent of privacy: the epsilon and the delta of one, and of several together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from decimal import Decimal
from typing import Any

from shepherd.io.phrases import delta_text, epsilon_text


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

    def text(self, unit: str) -> str:
        """It in words, with whose privacy it is; never less than it is.

        >>> Guarantee(1.25, 1e-5).text("client")
        'epsilon 1.25 at delta 1e-05 for each client'
        """
        return f"epsilon {epsilon_text(self.epsilon)} at delta {delta_text(self.delta)} for each {unit}"

    def row(self) -> dict[str, float | None]:
        """It as JSON has it."""
        return asdict(self)


def composed(each: Sequence[Guarantee]) -> Guarantee:
    """What holds for all of them together: epsilons and deltas add up (basic composition, theorem 3.16).

    >>> composed([Guarantee(1.0, 1e-5), Guarantee(0.5, 2e-5)])
    Guarantee(epsilon=1.5, delta=3e-05)
    """
    known = [one.epsilon for one in each if one.epsilon is not None]
    return Guarantee(_sum(known) if len(known) == len(each) else None, _sum([one.delta for one in each]))


def _sum(numbers: Sequence[float]) -> float:
    """The sum of the numbers as they are written, so that 1e-05 and 2e-05 are no more than 3e-05."""
    return float(sum(Decimal(repr(float(number))) for number in numbers))
