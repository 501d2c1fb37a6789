"""B trained as Q R: Q is an orthonormal basis of the broadcast's B, and only the small core R moves and
travels.

With B = Q R_0 (out, r), a client trains R and sends the change of R under B's name, (r, r) where B is (out,
r):

    dB  =  Q dR,    dR  =  Q^T dB

Server and clients take Q from the broadcast by the same QR, so it never travels. All of it is linear: the
mean of the cores is the core of the mean, and a norm or noise of the core is that of the change of B.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shepherd.core.adapter import Adapter
from shepherd.core.algorithm import Algorithm
from shepherd.core.messages import Update

Bases = Mapping[str, NDArray[np.float64]]
"""Q (out, r) by the name of its B; empty if no core is trained."""


def bases_of(algorithm: Algorithm, adapter: Adapter, round: int) -> Bases:
    """The bases of a round whose broadcast is this adapter."""
    cored = (name for name in adapter if algorithm.leaves(name, round) and algorithm.core(name, round))
    return {name: np.linalg.qr(adapter[name].astype(np.float64))[0] for name in cored}


def shrunk(bases: Bases, delta: Mapping[str, NDArray[Any]]) -> Adapter:
    """A change of the factors with the core's change in place of B's."""
    return Adapter({name: bases[name].T @ t if name in bases else t for name, t in delta.items()})


def grown(bases: Bases, update: Update) -> Update:
    """An update whose cores are changes of B again; the same update if there is none."""
    if not bases:
        return update
    whole = {name: bases[name] @ t if name in bases else t for name, t in update.delta.items()}
    return replace(update, delta=Adapter(whole))
