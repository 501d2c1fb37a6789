"""Client-level differential privacy with noise that is correlated over the rounds (DP-FTRL).

For cohorts that cannot be drawn at random: each client is asked in at most one of any `bands` rounds in a
row, as `[selection] name = "round_robin"` guarantees. The noise of the rounds is

    X  =  C^-1 Z,    Z independent,    C lower triangular with C[i, i - j] = c_j for j < bands

so that what one round adds, later ones take back in part, and the sum over all rounds, which the adapter
holds, has less noise than with independent draws. c_j are the coefficients of (1 - x)^(-1/2), the square root
of the sums over rounds:

    c_j  =  binom(2 j, j) / 4^j,    x_t  =  z_t - sum_(0 < j < bands) c_j x_(t - j)

A client with k rounds, which are at least `bands` apart, moves C times the updates by at most sqrt(k) |c|
norms, since its columns of C share no row. So Z gets the standard deviation noise * |c| * norm, and the run
spends what k rounds of `gaussian` with this `noise` spend, each with all clients. Kairouz et al., arXiv
2103.00039; banded: Choquette-Choo et al., arXiv 2306.08153.

The last `bands` - 1 rounds' noise is kept in the server's state: anyone who gets it can subtract the noise.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shepherd.config import PositiveInt, Table
from shepherd.core import Draws, Sampling, Spending, Transform, Turns, Update
from shepherd.errors import SettingsError
from shepherd.transforms.gaussian import Norm, Positive, hiding, released

NAME = "gaussian_correlated"
PAST = "past "
"""Prefix, in the state, of the last rounds' noise: (bands - 1, ...) of each tensor, the latest first."""


class Config(Table):
    norm: Norm = 1.0
    """Largest Euclidean norm of a client's change; longer ones are made shorter."""
    noise: Positive = 1.0
    """Noise multiplier of each round that a client is asked in, as for the transform gaussian."""
    bands: PositiveInt = 4
    """Rounds over which the noise is correlated; no client may be asked twice in as many rounds in a row."""


def build(config: Config) -> Transform:
    """Build both halves, and what the accountant needs."""
    factor = coefficients(config.bands)
    column = math.sqrt(float(factor @ factor))

    def on_server(update: Update, state: Any, draws: Draws) -> tuple[Update, Any]:
        rng, after = draws.generator("noise"), dict(state)

        def noise(name: str, shape: tuple[int, ...]) -> NDArray[np.float64]:
            past = state.get(PAST + name, np.zeros((config.bands - 1, *shape)))
            now = column * rng.standard_normal(shape) - np.tensordot(factor[1:], past, 1)
            after[PAST + name] = np.concatenate([now[None], past])[: config.bands - 1]
            return now

        return released(update, config.noise * config.norm, state, noise), after

    def spent(sampling: Sampling, rounds: int) -> Spending:
        if not (isinstance(sampling, Turns) and sampling.every >= config.bands):
            raise SettingsError(
                f"the transform {NAME} needs every client to be asked at most once in {config.bands} rounds"
                f' in a row; set [selection] name = "round_robin" with share = {1 / config.bands:.3g} or'
                " less, lower bands, or use the transform gaussian"
            )
        return Spending(noise=config.noise, sampling=sampling, steps=rounds)

    made = hiding(NAME, config.norm, on_server, spent)
    assert made.mechanism is not None
    return replace(made, needs_same_tensors=True, mechanism=replace(made.mechanism, apart=config.bands))


def coefficients(bands: int) -> NDArray[np.float64]:
    """The first coefficients of (1 - x)^(-1/2).

    >>> coefficients(4).tolist()
    [1.0, 0.5, 0.375, 0.3125]
    """
    steps = np.arange(1, bands)
    return np.cumprod(np.concatenate([[1.0], (2 * steps - 1) / (2 * steps)]))
