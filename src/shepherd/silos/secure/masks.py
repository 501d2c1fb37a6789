"""Vectors in the ring of integers modulo 2^32 or 2^64, and the keystreams that mask them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from shepherd.errors import SecureError
from shepherd.silos.secure.primitives import Keystream

Ring: TypeAlias = NDArray[Any]
"""Little-endian uint32 or uint64; sums wrap around."""

_CHUNK_BYTES = 2**18  # small enough for a processor's cache; a multiple of a block and of a number


def dtype(ring_bits: int) -> np.dtype[Any]:
    """Type of a vector in the ring modulo 2^ring_bits."""
    return np.dtype("<u4" if ring_bits == 32 else "<u8")


def in_ring(codes: NDArray[np.int64], length: int, ring_bits: int) -> Ring:
    """Codes as a new vector in the ring: negative ones are counted down from 2^ring_bits.

    Args:
        codes: (length,), each of at most 2^(ring_bits - 1) - 1 in size.

    Raises:
        SecureError: they are of another type, shape or size.
    """
    if codes.dtype != np.int64 or codes.shape != (length,):
        raise SecureError(
            f"the codes of a secure sum are {codes.dtype} of shape {codes.shape}; give int64 of shape"
            f" ({length},)"
        )
    largest = 2 ** (ring_bits - 1) - 1
    if codes.min() < -largest or codes.max() > largest:
        raise SecureError(
            f"a code of a secure sum is larger than {largest}; clip the values, or write secure.ring_bits"
            " = 64"
        )
    return codes.view(np.uint64).astype(dtype(ring_bits))


def from_ring(vector: Ring) -> NDArray[np.int64]:
    """The vector as signed numbers: what is at or above half of the ring is negative."""
    return vector.view(f"<i{vector.itemsize}").astype(np.int64)


def mask(vector: Ring, plus: Iterable[bytes], minus: Iterable[bytes] = ()) -> None:
    """Add and subtract keystreams in place, a chunk at a time: AES-256-CTR under each key, from zero.

    Args:
        plus: keys whose streams are added; 32 bytes each, never used for anything else.
        minus: keys whose streams are subtracted.
    """
    added = [Keystream(key) for key in plus]
    subtracted = [Keystream(key) for key in minus]
    zeros, buffer = memoryview(bytes(_CHUNK_BYTES)), bytearray(_CHUNK_BYTES + 15)
    stream = np.frombuffer(buffer, vector.dtype, _CHUNK_BYTES // vector.itemsize)
    for start in range(0, len(vector), len(stream)):
        part = vector[start : start + len(stream)]
        for keystreams, combine in ((added, np.add), (subtracted, np.subtract)):
            for keystream in keystreams:
                keystream.fill(buffer, zeros[: part.nbytes])
                combine(part, stream[: len(part)], out=part)
