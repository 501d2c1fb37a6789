"""The batched fit against scikit-learn's, one resample at a time."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from shepherd.evaluate.logistic import chance, fit


def test_every_resample_is_what_a_library_fits() -> None:
    rng = np.random.default_rng(0)
    design = np.column_stack([np.ones(200), rng.normal(size=(200, 2))])
    outcome = (rng.random(200) < chance(design @ [0.3, 1.5, -0.7])).astype(float)
    weights = rng.integers(0, 4, size=(5, 200)).astype(float)
    found = fit(design, outcome, weights, np.array([0.0, 0.5, 0.5]))
    for beta, weight in zip(found, weights, strict=True):
        known = LogisticRegression(C=2.0, tol=1e-10).fit(design[:, 1:], outcome, sample_weight=weight)
        assert beta == pytest.approx([*known.intercept_, *known.coef_[0]], abs=1e-4)


def test_half_an_outcome_is_half_a_win_and_half_a_loss() -> None:
    design = np.ones((3, 1))
    ties = fit(design, np.array([1.0, 1.0, 0.5]), np.ones((1, 3)), np.zeros(1))
    assert ties[0, 0] == pytest.approx(np.log(2.5 / 0.5))


def test_parted_data_stay_finite_under_a_ridge() -> None:
    design = np.array([[-1.0], [1.0]])
    found = fit(design, np.array([0.0, 1.0]), np.array([[1000.0, 1000.0]]), np.array([0.01]))
    # where the gradient of both meets the ridge's
    assert 2000 * (1 - chance(found[0, 0])) == pytest.approx(0.01 * found[0, 0], rel=1e-6)


def test_chances_at_the_ends() -> None:
    assert chance(np.array([-1000.0, 0.0, 1000.0])) == pytest.approx([0, 0.5, 1])
