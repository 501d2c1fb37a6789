"""Verdicts of a judge on two answers, in either protocol."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from shepherd.errors import StatisticsError


@dataclass(frozen=True, slots=True, kw_only=True)
class Scored:
    """One verdict in FedIT's protocol: two answers to a question, each scored from 1 to 10.

    repeat: index of the verdict among those on the same question and pair, from 0.
    """

    question: str
    category: str
    first: str
    second: str
    repeat: int
    score_first: float
    score_second: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Preferred:
    """One verdict on two arms' answers to a question, both orders already combined (`combine`).

    result: 1 if the first arm wins, 0.5 for a tie, 0 if it loses. Lengths are in characters or any unit.
    """

    question: str
    category: str
    first: str
    second: str
    result: float
    length_first: int
    length_second: int


def combine(order_ab: float, order_ba: float) -> float:
    """Combine the verdicts in both orders, each for the same arm; disagreement is a tie.

    >>> combine(1, 1), combine(1, 0), combine(0.5, 0)
    (1, 0.5, 0.5)
    """
    return order_ab if order_ab == order_ba else 0.5


def require(preferred: Sequence[Preferred]) -> None:
    """Check preferences before a statistic.

    Raises:
        StatisticsError: there are no verdicts, one is of an arm with itself, or one is not 0, 0.5 or 1.
    """
    if not preferred:
        raise StatisticsError(
            "There are no verdicts for a statistic; have the judge compare answers to at least one question."
        )
    for verdict in preferred:
        if verdict.first == verdict.second or verdict.result not in (0, 0.5, 1):
            raise StatisticsError(
                f"The verdict {verdict.result} on question {verdict.question!r} for {verdict.first} and "
                f"{verdict.second} cannot be used; give two arms and 1, 0.5 or 0."
            )
