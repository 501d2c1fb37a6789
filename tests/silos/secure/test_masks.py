"""The ring and its masks, against plain whole numbers and a keystream drawn in one piece."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from shepherd.errors import SecureError
from shepherd.silos.secure import masks

KEYS = [bytes([number]) * 32 for number in range(5)]


def stream(key: bytes, length: int, ring_bits: int) -> list[int]:
    """Numbers of AES-256-CTR, at once and by hand."""
    size = ring_bits // 8
    drawn = Cipher(algorithms.AES256(key), modes.CTR(bytes(16))).encryptor().update(bytes(length * size))
    return [int.from_bytes(drawn[at : at + size], "little") for at in range(0, len(drawn), size)]


@pytest.mark.parametrize("ring_bits", [32, 64])
@pytest.mark.parametrize("length", [1, 7, 2**15, 2**16 + 1])  # a chunk is 2^18 bytes
def test_masks_are_keystreams_that_are_added_and_subtracted(length: int, ring_bits: int) -> None:
    vector = np.arange(length).astype(masks.dtype(ring_bits))
    masks.mask(vector, KEYS[:2], KEYS[2:])
    streams = [stream(key, length, ring_bits) for key in KEYS]
    for place in {0, length // 2, length - 1}:
        plus, minus = (sum(one[place] for one in part) for part in (streams[:2], streams[2:]))
        assert int(vector[place]) == (place + plus - minus) % 2**ring_bits


def test_the_same_masks_cancel() -> None:
    vector = np.zeros(1_000, masks.dtype(32))
    masks.mask(vector, KEYS)
    assert vector.any()
    masks.mask(vector, (), KEYS)
    assert not vector.any()


@settings(max_examples=25, deadline=None)
@given(st.sampled_from([32, 64]), st.data())
def test_the_ring_holds_signed_numbers(ring_bits: int, data: st.DataObject) -> None:
    largest = 2 ** (ring_bits - 1) - 1
    shapes = hnp.array_shapes(min_dims=1, max_dims=1)
    codes = data.draw(hnp.arrays(np.int64, shapes, elements=st.integers(-largest, largest)))
    vector = masks.in_ring(codes, len(codes), ring_bits)
    assert vector.tolist() == [int(code) % 2**ring_bits for code in codes]
    assert masks.from_ring(vector).tolist() == codes.tolist()


@pytest.mark.parametrize("code", [2**31, -(2**31), 2**40])
def test_a_code_that_the_ring_cannot_hold_is_refused(code: int) -> None:
    with pytest.raises(SecureError, match="a code of a secure sum is larger than 2147483647"):
        masks.in_ring(np.array([0, code]), 2, 32)


@pytest.mark.parametrize(
    "codes", [np.zeros(3, np.int32), np.zeros(3), np.zeros(4, np.int64), np.zeros((3, 1), int)]
)
def test_other_codes_are_refused(codes: np.ndarray) -> None:
    with pytest.raises(SecureError, match=r"give int64 of shape \(3,\)"):
        masks.in_ring(codes, 3, 32)


def test_memory_does_not_grow_with_the_number_of_masks() -> None:
    vector = np.zeros(2**20, masks.dtype(32))
    tracemalloc.start()
    masks.mask(vector, (bytes([number]) * 32 for number in range(50)))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1_000_000  # two chunks of 262,144 bytes, and the ciphers; the vector has 4,194,304
