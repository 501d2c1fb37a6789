"""The C library's heap, which keeps what was freed: given back before a wave, the peak is the wave's."""

from __future__ import annotations

import ctypes
from collections.abc import Callable


def _found() -> Callable[[int], int]:
    try:
        return ctypes.CDLL(None).malloc_trim
    except (OSError, AttributeError, TypeError):  # only glibc has it
        return lambda pad: 0


_malloc_trim = _found()


def give_back() -> None:
    """Return what is free to the system, also from the middle of the heap; does nothing but on glibc."""
    _malloc_trim(0)
