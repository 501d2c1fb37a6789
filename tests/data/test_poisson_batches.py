"""Poisson batches: each example comes by itself, with the chance that was asked for."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shepherd.data import poisson_batches


@given(st.integers(1, 50), st.integers(0, 20), st.floats(0.01, 1.0))
def test_there_are_as_many_steps_as_asked_for_and_no_example_twice_in_one(size, steps, chance) -> None:
    drawn = poisson_batches.visit(size, steps, chance, np.random.default_rng(size))
    assert len(drawn) == steps
    for batch in drawn:
        assert batch.dtype == np.int64
        assert len(set(batch.tolist())) == len(batch)
        assert all(0 <= example < size for example in batch)


def test_each_example_is_drawn_with_the_chance_and_independently() -> None:
    size, steps, chance = 20, 20_000, 0.15
    drawn = poisson_batches.visit(size, steps, chance, np.random.default_rng(1))
    taken = np.zeros((steps, size), bool)
    for step, batch in enumerate(drawn):
        taken[step, batch] = True
    tolerance = 4.5 * math.sqrt(chance * (1 - chance) / steps)
    np.testing.assert_allclose(taken.mean(0), chance, atol=tolerance)
    together = (taken[:, :1] & taken[:, 1:]).mean(0)
    np.testing.assert_allclose(together, chance**2, atol=tolerance)
    # of a binomial, not of a fixed size
    assert taken.sum(1).var() == pytest.approx(size * chance * (1 - chance), rel=0.05)


def test_a_batch_may_be_empty_and_one_with_chance_1_is_whole() -> None:
    drawn = poisson_batches.visit(2, 400, 0.1, np.random.default_rng(0))
    assert any(len(batch) == 0 for batch in drawn)
    whole = poisson_batches.visit(5, 3, 1.0, np.random.default_rng(0))
    assert [batch.tolist() for batch in whole] == [list(range(5))] * 3


def test_the_expected_coverage_is_the_mean_of_many_visits() -> None:
    size, steps, chance = 200, 7, 0.2
    rng = np.random.default_rng(2)
    seen = [
        len(np.unique(np.concatenate(poisson_batches.visit(size, steps, chance, rng)))) / size
        for _ in range(200)
    ]
    assert poisson_batches.coverage(steps, chance) == pytest.approx(np.mean(seen), abs=0.01)


@pytest.mark.parametrize("chance", [0.0, -0.1, 1.1, math.nan, math.inf])
def test_a_chance_that_is_none_is_refused(chance: float) -> None:
    with pytest.raises(ValueError, match="chance"):
        poisson_batches.visit(3, 1, chance, np.random.default_rng(0))
