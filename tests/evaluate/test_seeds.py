"""The seeds' part of a draw, against Student's t."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from shepherd.evaluate.seeds import contrasts, luck, student, variance


@pytest.mark.parametrize("freedom", [1, 2, 3, 9, 10, 11, 15, 30, 100])
def test_students_quantile(freedom: int) -> None:
    assert student(freedom) == pytest.approx(stats.t.ppf(0.975, freedom), rel=0.002)


@pytest.mark.parametrize("seeds", [2, 3, 5])
def test_seeds_alone_give_students_interval(seeds: int) -> None:
    scores = np.random.default_rng(seeds).normal(size=seeds)
    drawn = contrasts(100_000, seeds, np.random.default_rng(0)) @ scores
    half = stats.t.ppf(0.975, seeds - 1) * scores.std(ddof=1) / math.sqrt(seeds)
    assert np.quantile(drawn, [0.025, 0.975]) == pytest.approx([-half, half], rel=0.02)
    assert variance(scores, 1.0) == pytest.approx(drawn.var(), rel=0.02)
    assert variance(scores, 0.5) == pytest.approx(drawn.var() / 4, rel=0.02)


def test_what_all_seeds_share_moves_nothing() -> None:
    weights = contrasts(100, 4, np.random.default_rng(0))
    assert weights.sum(axis=1) == pytest.approx(np.zeros(100), abs=1e-12)
    assert (contrasts(5, 1, np.random.default_rng(0)) == 0).all()


def test_luck_is_the_spread_that_noise_does_not_explain() -> None:
    scores = np.array([1.0, 2.0, 3.0])  # variance 1
    assert luck(scores, 0.0) == 1.0
    assert luck(scores, 0.75) == 0.5
    assert luck(scores, 2.0) == 0.0
    assert luck(np.ones(3), 0.0) == luck(np.ones(1), 0.0) == variance(np.ones(1), 1.0) == 0.0
