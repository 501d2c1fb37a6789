"""Each adapter's own score and its difference from the base: by hand, and by normal intervals."""

from __future__ import annotations

import math

import numpy as np
import pytest

from shepherd.evaluate.draws import draws
from shepherd.evaluate.single import each_against
from shepherd.evaluate.statistics import difference, score
from shepherd.evaluate.still import SIGNED


def test_by_hand() -> None:
    """Two categories of two documents, with weights: base (3 * 1 + 1 * 0) / 4 and (1 + 0) / 2."""
    base = np.array([[1.0, 0, 1, 0]])
    adapters = np.array([[0.0, 1, 1, 0], [1, 0, 1, 1]])
    drawn = draws(["a", "a", "b", "b"], seeds=2)
    worse, better = each_against(adapters, base, drawn, [3, 1, 1, 1], (0.0, 1.0))
    assert worse["value"] == pytest.approx((0.25 + 0.5) / 2)
    assert worse["difference"]["value"] == pytest.approx((0.25 + 0.5) / 2 - (0.75 + 0.5) / 2)
    assert better["value"] == pytest.approx((0.75 + 1) / 2)
    assert better["difference"]["value"] == pytest.approx(0.25)


def test_intervals_are_over_documents_alone() -> None:
    """Two seeds that differ by 2 in the mean: the arm's interval holds that luck, an adapter's does not."""
    rng = np.random.default_rng(0)
    base = rng.normal(size=(1, 400))
    adapters = base + np.array([[-1.0], [1.0]]) + rng.normal(0, 0.5, (2, 400))
    drawn = draws(["all"] * 400, seeds=2)
    found = each_against(adapters, base, drawn, None, SIGNED)
    for own, values in zip(found, adapters, strict=True):
        apart = (values - base)[0]
        error = 1.96 * apart.std(ddof=1) / math.sqrt(400)
        assert own["difference"]["value"] == pytest.approx(apart.mean())
        bounds = own["difference"]["low"], own["difference"]["high"]
        assert bounds == pytest.approx((apart.mean() - error, apart.mean() + error), abs=0.15 * error)
    both = difference(adapters, base, drawn, None, SIGNED).difference
    assert both.low < -1 < 1 < both.high


def test_an_arm_of_one_seed_has_the_numbers_of_its_adapter() -> None:
    rng = np.random.default_rng(1)
    base, values = (rng.integers(0, 2, 40).astype(float) for _ in range(2))
    drawn = draws(["all"] * 40)
    (own,) = each_against(values, base, drawn, None, (0.0, 1.0))
    assert own == {
        **score(values, drawn).row(),
        "difference": difference(values, base, drawn).difference.row(),
    }
