"""Weighted logistic regression, fitted to all resamples at once.

A library fits one set of weights at a time, at some milliseconds each: the resamples of a dozen pairs of
arms would take a minute. Newton's method over a leading axis takes about a second.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
_CHUNK_CELLS = 1 << 20


def fit(design: Floats, outcome: Floats, weights: Floats, ridge: Floats) -> Floats:
    """Fit coefficients (R, P) that maximise sum_n w_rn * loglikelihood_n - sum_p ridge_p * beta_p**2 / 2.

    Args:
        design: (N, P), the same for every resample.
        outcome: (N,) in [0, 1]; 0.5 counts as half a win and half a loss.
        weights: (R, N), not negative.
        ridge: (P,); above 0 if the data alone may leave a coefficient without a finite value.
    """
    step = max(1, _CHUNK_CELLS // max(len(design), design.shape[1] ** 2))
    start = _newton(design, outcome, weights.mean(axis=0, keepdims=True), ridge, np.zeros(design.shape[1]))[0]
    chunks = (weights[at : at + step] for at in range(0, len(weights), step))
    return np.concatenate([_newton(design, outcome, chunk, ridge, start) for chunk in chunks])


def chance(logit: Floats) -> Floats:
    """The logistic function, without overflow."""
    return 0.5 * (1 + np.tanh(0.5 * logit))


def _newton(design: Floats, outcome: Floats, weights: Floats, ridge: Floats, start: Floats) -> Floats:
    size = design.shape[1]
    squares = (design[:, :, None] * design[:, None, :]).reshape(len(design), size * size)
    beta = np.tile(start, (len(weights), 1))
    for _ in range(100):
        p = chance(beta @ design.T)  # (R, N)
        gradient = (weights * (outcome - p)) @ design - ridge * beta
        curve = ((weights * p * (1 - p)) @ squares).reshape(-1, size, size) + np.diag(ridge)
        move = np.linalg.solve(curve, gradient[..., None])[..., 0]
        beta += np.clip(move, -2, 2)  # Newton's step overshoots where the curve is flat
        if np.abs(move).max() < 1e-9:
            break
    return beta
