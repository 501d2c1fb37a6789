"""Messages as FLARE models: arrays of bytes only, so that FLARE decodes nothing in them."""

from __future__ import annotations

from typing import Any

import numpy as np
from nvflare.app_common.abstract.fl_model import FLModel, ParamsType

from shepherd.errors import WireError

PIECE_BYTES = 4 * 2**20
"""Size of one array; FLARE makes three or four copies of an array in transit, for each receiver."""


def wrapped(message: bytes) -> FLModel:
    """Wrap bytes in a FLARE model, as pieces by their offsets."""
    whole = np.frombuffer(message, np.uint8)
    starts = range(0, max(1, len(whole)), PIECE_BYTES)
    pieces = {str(start): whole[start : start + PIECE_BYTES] for start in starts}
    return FLModel(params_type=ParamsType.FULL, params=pieces)


def unwrapped(model: FLModel) -> bytes:
    """Unwrap the bytes of a FLARE model.

    Raises:
        WireError: the model holds no such pieces.
    """
    found = model.params if isinstance(model.params, dict) else {}
    pieces = [found.get(str(place * PIECE_BYTES)) for place in range(len(found))]
    if not pieces or not all(map(_is_bytes, pieces)):
        raise WireError("the message was not made by Shepherd; install the same version at both ends")
    return b"".join(np.ascontiguousarray(piece).data for piece in pieces if piece is not None)


def _is_bytes(piece: Any) -> bool:
    return isinstance(piece, np.ndarray) and piece.dtype == np.uint8 and piece.ndim == 1
