"""Mechanisms that claim privacy and do not give it, made from one that does; an audit must catch each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shepherd.core import Adapter, Context, Draws, Mechanism, Scoped, Seeded, Transform, Update

PUBLIC = 0
"""The seed that everybody knows."""


def without_noise(mechanism: Transform) -> Transform:
    """The same claim, with zeros in place of the noise."""
    return replace(
        mechanism, on_server=lambda update, state, draws: mechanism.on_server(update, state, Silent())
    )


def without_client_noise(mechanism: Transform) -> Transform:
    """The same claim of a mechanism whose clients add the noise, without any; they round as before."""
    return replace(
        mechanism,
        on_client=lambda update, public, draws: mechanism.on_client(update, public, _WithoutNoise(draws)),
    )


def without_clip(mechanism: Transform) -> Transform:
    """The same claim and the same noise, on updates of any length."""
    if mechanism.mechanism is None:
        raise ValueError("a transform without a claim cannot break one")
    return replace(
        mechanism,
        on_client=lambda update, public, draws: _bare(update),
        on_arrival=lambda update, state: _bare(update),
        mechanism=Mechanism(spent=mechanism.mechanism.spent),
    )


def from_public_seed(mechanism: Transform) -> Transform:
    """The same claim, with noise that everybody can draw again."""
    return replace(
        mechanism,
        on_server=lambda update, state, draws: mechanism.on_server(update, state, _public(update.round)),
    )


def without_public_noise(
    mechanism: Transform, adapter: Adapter, rounds: Sequence[int], context: Context, rate: float = 1.0
) -> Adapter:
    """The adapter that an attacker makes of a released one by drawing the public noise again.

    Args:
        mechanism: the one that `from_public_seed` was made from.
        rounds: the rounds of the run, from 0.
        rate: learning rate of the server, which averages.
    """
    state = mechanism.init(context)
    for number in rounds:
        zeros = Adapter({name: np.zeros(tensor.shape, np.float32) for name, tensor in adapter.items()})
        nothing = Update(round=number, delta=zeros, weight=1.0, clients=())
        noise, state = mechanism.on_server(nothing, state, _public(number))
        adapter = adapter.plus(Adapter({name: noise.delta[name] for name in noise.delta}), -rate)
    return adapter


def _public(number: int) -> Draws:
    return Scoped(Seeded(PUBLIC), (number, "noise"))


def _bare(update: Update) -> Update:
    return replace(update, weight=1.0, metrics={})


class _WithoutNoise:
    """Draws of which the noise alone is zero."""

    def __init__(self, draws: Draws) -> None:
        self.draws = draws

    def generator(self, *purpose: int | str) -> Any:
        return _Zeros() if purpose == ("noise",) else self.draws.generator(*purpose)


class Silent:
    """Draws that are all zero."""

    def generator(self, *purpose: int | str) -> Any:
        """A generator of zeros."""
        return _Zeros()


class _Zeros:
    def standard_normal(self, size: Any = None, dtype: Any = np.float64) -> NDArray[Any]:
        return np.zeros(() if size is None else size, dtype)

    def normal(self, loc: float = 0.0, scale: float = 1.0, size: Any = None) -> NDArray[Any]:
        return np.full(() if size is None else size, loc)

    def poisson(self, lam: float = 1.0, size: Any = None) -> NDArray[np.int64]:
        return np.zeros(() if size is None else size, np.int64)
