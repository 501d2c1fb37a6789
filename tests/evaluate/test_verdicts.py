"""Verdicts: combined over both orders, and refused where they cannot be read."""

from __future__ import annotations

import itertools

import pytest

from shepherd.errors import StatisticsError
from shepherd.evaluate.verdicts import Preferred, combine, require


def verdict(first: str = "a", second: str = "b", result: float = 1) -> Preferred:
    return Preferred(
        question="q7",
        category="all",
        first=first,
        second=second,
        result=result,
        length_first=1,
        length_second=1,
    )


def test_both_orders_must_agree() -> None:
    for one, other in itertools.product((0, 0.5, 1), repeat=2):
        assert combine(one, other) == (one if one == other else 0.5)


def test_verdicts_that_cannot_be_read_are_one_sentence() -> None:
    require([verdict(), verdict(result=0.5)])
    with pytest.raises(StatisticsError, match="no verdicts"):
        require([])
    for bad in (verdict(result=0.7), verdict(result=float("nan")), verdict(second="a")):
        with pytest.raises(StatisticsError, match="'q7'"):
            require([verdict(), bad])
