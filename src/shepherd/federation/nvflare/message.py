"""Our bytes inside FLARE's model: one array of bytes, so that all reading of them is ours."""

from __future__ import annotations

import numpy as np
from nvflare.app_common.abstract.fl_model import FLModel, ParamsType

from shepherd.errors import WireError

NAME = "message"


def wrapped(message: bytes) -> FLModel:
    """The bytes as a FLARE model."""
    return FLModel(params_type=ParamsType.FULL, params={NAME: np.frombuffer(message, np.uint8)})


def unwrapped(model: FLModel) -> bytes:
    """The bytes of a FLARE model.

    Raises:
        WireError: there are none in it.
    """
    array = model.params.get(NAME) if isinstance(model.params, dict) else None
    if not isinstance(array, np.ndarray) or array.dtype != np.uint8 or array.ndim != 1:
        raise WireError("the message holds no bytes of ours; install the same version at both ends")
    return array.tobytes()
