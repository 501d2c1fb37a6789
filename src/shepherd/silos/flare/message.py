"""Our bytes inside FLARE's model: arrays of bytes and nothing else, so that all reading of them is ours."""

from __future__ import annotations

from typing import Any

import numpy as np
from nvflare.app_common.abstract.fl_model import FLModel, ParamsType

from shepherd.errors import WireError

PIECE = 4 * 2**20
"""Bytes of one array. FLARE makes three or four copies of an array on its way, for each receiver."""


def wrapped(message: bytes) -> FLModel:
    """The bytes as a FLARE model: pieces, by where they begin."""
    whole = np.frombuffer(message, np.uint8)
    starts = range(0, max(1, len(whole)), PIECE)
    pieces = {str(start): whole[start : start + PIECE] for start in starts}
    return FLModel(params_type=ParamsType.FULL, params=pieces)


def unwrapped(model: FLModel) -> bytes:
    """The bytes of a FLARE model.

    Raises:
        WireError: there are none in it.
    """
    found = model.params if isinstance(model.params, dict) else {}
    pieces = [found.get(str(place * PIECE)) for place in range(len(found))]
    if not pieces or not all(map(_is_bytes, pieces)):
        raise WireError("the message holds no bytes of ours; install the same version at both ends")
    return b"".join(np.ascontiguousarray(piece).data for piece in pieces if piece is not None)


def _is_bytes(piece: Any) -> bool:
    return isinstance(piece, np.ndarray) and piece.dtype == np.uint8 and piece.ndim == 1
