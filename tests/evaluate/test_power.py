"""Questions needed, against known numbers and a simulation."""

from __future__ import annotations

import numpy as np
import pytest

from shepherd.evaluate.power import questions_needed


@pytest.mark.parametrize(("rate", "known"), [(0.55, 780), (0.60, 195), (0.53, 2180)])
def test_win_rates_against_a_half(rate: float, known: int) -> None:
    assert questions_needed(rate - 0.5, 0.5) == pytest.approx(known, rel=0.015)


def test_as_many_questions_find_it_four_times_in_five() -> None:
    rng = np.random.default_rng(0)
    needed = questions_needed(0.1, 0.7)
    assert needed is not None
    means = rng.normal(0.1, 0.7, size=(4000, needed)).mean(axis=1)
    found = np.abs(means) > 1.96 * 0.7 / np.sqrt(needed)
    assert found.mean() == pytest.approx(0.8, abs=0.02)


def test_nothing_finite_helps() -> None:
    assert questions_needed(0.0, 0.5) is None
    assert questions_needed(0.1, 0.5, floor=0.01) is None  # the seeds alone spread 0.1
    assert questions_needed(0.1, 0.0) is None  # nothing is known of the spread


def test_the_seeds_spread_takes_its_room() -> None:
    alone, more = questions_needed(0.1, 0.5), questions_needed(0.1, 0.5, floor=0.5 * (0.1 / 2.8016) ** 2)
    assert alone is not None
    assert more == pytest.approx(2 * alone, rel=0.01)


def test_the_sign_and_the_unit_do_not_matter() -> None:
    assert questions_needed(-0.05, 0.5) == questions_needed(5, 50) == questions_needed(0.05, 0.5)
