"""When a round ends, and what a late update counts, against plain computations and the values of FedBuff."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shepherd.core.stragglers import Stragglers, staleness_weight

TIMES = st.lists(st.floats(0.0, 1e6), min_size=1, max_size=30)


@given(late=st.integers(0, 10**6))
def test_a_later_update_counts_less_and_a_fresh_one_in_full(late: int) -> None:
    assert staleness_weight(0) == 1.0  # not 0.5, as where the version is counted up first
    assert 0 < staleness_weight(late + 1) < staleness_weight(late) <= 1
    assert staleness_weight(late) ** 2 * (1 + late) == pytest.approx(1.0, rel=1e-12)


@given(arrivals=TIMES, least=st.integers(1, 40), wait=st.floats(0.0, 1e3))
def test_a_round_ends_after_its_fewest_updates_and_a_wait_or_once_all_have_come(
    arrivals: list[float], least: int, wait: float
) -> None:
    ends = Stragglers(min_updates=least, wait_s=wait).ends(arrivals, max(arrivals))
    in_time = [each for each in arrivals if each <= ends]
    assert len(in_time) >= min(least, len(arrivals))
    assert ends <= max(arrivals)
    # nobody is waited for without need: at wait before the end there were too few, or the end is the last one
    before = sum(each < ends - wait - 1e-9 * (1 + ends) for each in arrivals)
    assert before < least or ends == max(arrivals)


def test_by_hand() -> None:
    ends = Stragglers(min_updates=3, wait_s=2.0).ends
    assert ends([5.0, 1.0, 3.0, 100.0], 100.0) == 7.0
    assert ends([5.0, 1.0, 3.0, 6.0], 6.0) == 6.0  # all have come
    assert ends([5.0, 1.0], 5.0) == 5.0  # fewer were asked
    assert ends([5.0, 1.0], 60.0) == 60.0  # one that counts is missing, and the last answer decides
    assert math.isclose(staleness_weight(3), 0.5)
