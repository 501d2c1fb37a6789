"""Codes of an update in few bits: numbers in blocks with a scale each, packed bits, places as gaps.

Pure functions over numpy arrays. Everything that a server cannot know beforehand is in the arrays; their
lengths follow from the layout of the update, and reading raises UpdateRefused unless they are as they have
to be.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from shepherd.core.payload import Layout, Payload
from shepherd.errors import UpdateRefused

Flat = NDArray[np.float32]
"""All numbers of an update in a row, (n,): its tensors by name, each in C order."""
Codes = NDArray[np.uint8]
STEPS: Mapping[int, int] = {1: 1, 4: 14, 8: 254}
"""Bits of a code -> steps from -scale to scale. An even number has a level at zero; a single bit has none."""
BYTE = 8
LARGEST_SCALE = 1e12
"""Largest scale: a larger number in an update is refused in any case (`rounds.acceptance.MAX_CHANGE`)."""


# one row of numbers -----------------------------------------------------------------------------------------


def flattened(tensors: Mapping[str, NDArray[np.float32]]) -> Flat:
    """All numbers of some tensors in a row, (n,)."""
    rows = [tensors[name].ravel() for name in sorted(tensors)]
    return np.concatenate([np.zeros(0, np.float32), *rows])


def rebuilt(row: Flat, layout: Layout) -> dict[str, NDArray[np.float32]]:
    """The tensors of this layout whose numbers are in a row; the other way round of `flattened`."""
    names = sorted(layout)
    ends = np.cumsum([0, *(size_of(layout[name]) for name in names)])
    return {
        name: row[start:end].reshape(layout[name])
        for name, start, end in zip(names, ends, ends[1:], strict=False)
    }


def size_of(shape: tuple[int, ...]) -> int:
    """How many numbers a tensor of this shape has.

    >>> size_of((3, 2)), size_of(()), size_of((0, 5))
    (6, 1, 0)
    """
    return int(np.prod(shape, dtype=np.int64))


def blocks(sizes: Mapping[str, int], length: int) -> NDArray[np.int64]:
    """Where each block begins in the row: every `length` numbers, and at each tensor.

    >>> blocks({"a": 5, "b": 0, "c": 1}, 2).tolist()
    [0, 2, 4, 5]
    """
    starts, total = [np.zeros(0, np.int64)], 0
    for name in sorted(sizes):
        starts.append(total + np.arange(0, sizes[name], length))
        total += sizes[name]
    return np.concatenate(starts)


# numbers in few bits ----------------------------------------------------------------------------------------


def quantised(
    row: Flat, starts: NDArray[np.int64], bits: int, rng: np.random.Generator | None
) -> tuple[Codes, NDArray[np.uint16]]:
    """The numbers as codes of a few bits each, packed, and the scale of each block.

        x  ->  scale * (2 code / STEPS - 1)

    With `rng` the scale is the largest size of a number in the block, and a number between two levels becomes
    one of them at random so that its expectation is the number. Without, it becomes the nearest, and with one
    bit the scale is the mean size, which is the best one for signs.

    Args:
        starts: where each block begins, from `blocks`.

    Returns:
        Codes, (ceil(n bits / 8),), and scales as bfloat16 bits, (blocks,). A block with a number that is not
        finite has a scale that is not.
    """
    if not len(starts):
        return np.zeros(0, np.uint8), np.zeros(0, np.uint16)
    sizes = np.abs(row)
    if rng is None and bits == 1:
        counts = np.diff(np.append(starts, len(row)))
        scales = _short(np.add.reduceat(sizes, starts, dtype=np.float64) / counts, up=False)
    else:
        scales = _short(np.maximum.reduceat(sizes, starts), up=True)
    steps = np.float32(STEPS[bits])
    spread = _spread(_long(scales), starts, len(row))
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        places = (row / spread + 1) * (steps / 2)
    places = np.where(np.isfinite(places), places, 0).clip(0, steps)
    if rng is not None:
        low = np.floor(places)
        codes = low + (rng.random(len(row), dtype=np.float32) < places - low)
    else:
        codes = np.rint(places) if bits > 1 else row >= 0
    return packed(codes.astype(np.uint8), bits), scales


def dequantised(
    codes: NDArray[np.generic], scales: NDArray[np.generic], starts: NDArray[np.int64], size: int, bits: int
) -> Flat:
    """The numbers that codes stand for, (size,).

    Raises:
        UpdateRefused: the codes or the scales are not what `quantised` makes of as many numbers: another
            dtype or length, a code above the largest, or a scale that is not finite, negative or above
            LARGEST_SCALE.
    """
    require_array(scales, "scales", np.dtype(np.uint16), len(starts))
    found = _long(scales.astype(np.uint16))
    for wrong, what in ((~np.isfinite(found), "not finite"), (np.signbit(found), "negative")):
        if wrong.any():
            block = int(np.argmax(wrong))
            raise UpdateRefused(
                f"the scale of block {block} of its change is {found[block]:g}, which is {what}; lower the"
                " learning rate or clip the gradient"
            )
    if found.size and found.max() > LARGEST_SCALE:
        raise UpdateRefused(
            f"the scale of block {int(np.argmax(found))} of its change is {found.max():.3g}, and at most"
            f" {LARGEST_SCALE:g} is allowed; clip the update"
        )
    whole = unpacked(codes, size, bits, "codes")
    steps = STEPS[bits]
    if whole.size and whole.max() > steps:
        at = int(np.argmax(whole))
        raise UpdateRefused(
            f"code {at} of its change is {whole[at]}, and the largest is {steps}; apply the run file's"
            " transforms at the client"
        )
    units = (2 * whole.astype(np.float32) - steps) / steps
    return np.asarray(_spread(found, starts, size) * units, np.float32)


def _spread(scales: NDArray[np.float32], starts: NDArray[np.int64], size: int) -> Flat:
    """The scale of each number."""
    return np.repeat(scales, np.diff(np.append(starts, size)))


def _short(scales: NDArray[np.floating], *, up: bool) -> NDArray[np.uint16]:
    """Scales as bfloat16, the upper half of a float32; rounded up, or to the nearest."""
    whole = scales.astype(np.float32).view(np.uint32)
    whole = np.where(np.isnan(scales), np.uint32(0x7FC00000), whole)
    return ((whole + np.uint32(0xFFFF if up else 0x8000)) >> np.uint32(16)).astype(np.uint16)


def _long(scales: NDArray[np.uint16]) -> NDArray[np.float32]:
    return (scales.astype(np.uint32) << np.uint32(16)).view(np.float32)


def packed(codes: Codes, bits: int) -> Codes:
    """Codes of 1, 4 or 8 bits in bytes, the first in the highest bits; the last byte ends in zeros.

    >>> packed(np.array([1, 2, 3], np.uint8), 4).tolist()
    [18, 48]
    """
    each = BYTE // bits
    rows = np.zeros((-(-len(codes) // each), each), np.uint8)
    rows.ravel()[: len(codes)] = codes
    shifts = np.arange(each - 1, -1, -1, dtype=np.uint8) * np.uint8(bits)
    return np.asarray(np.bitwise_or.reduce(rows << shifts, axis=1), np.uint8)


def unpacked(data: NDArray[np.generic], count: int, bits: int, what: str) -> Codes:
    """The codes in some bytes, (count,).

    Raises:
        UpdateRefused: there are more or fewer bytes than for `count` codes, or the last one does not end in
            zeros; `what` names them.
    """
    each = BYTE // bits
    require_array(data, what, np.dtype(np.uint8), -(-count // each))
    shifts = np.arange(each - 1, -1, -1, dtype=np.uint8) * np.uint8(bits)
    whole = ((data.astype(np.uint8)[:, None] >> shifts) & np.uint8(2**bits - 1)).ravel()
    if whole[count:].any():
        raise UpdateRefused(
            f"the {what} of its change go on after number {count}, the last one; apply the run file's"
            " transforms at the client"
        )
    return whole[:count]


def require_array(array: NDArray[np.generic], what: str, dtype: np.dtype, length: int) -> None:
    """Raise UpdateRefused unless an array is a row of this dtype and length; `what` names it."""
    if array.dtype != dtype or array.shape != (length,):
        raise UpdateRefused(
            f"the {what} of its change are {array.dtype} of shape {array.shape}, not {dtype} of shape"
            f" ({length},); apply the run file's transforms at the client"
        )


def require_parts(delta: Payload, names: tuple[str, ...], transform: str) -> None:
    """Raise UpdateRefused unless a change has the arrays that a transform of this name sends."""
    if set(delta) != set(names):
        got = ", ".join(sorted(delta)[:3]) + ", ..." * (len(delta) > 3)
        raise UpdateRefused(
            f"its change is not encoded as the transform {transform} does it ({got or 'it is empty'}, not"
            f" {', '.join(names)}); apply the run file's transforms at the client"
        )


# places in a row --------------------------------------------------------------------------------------------


def places_coded(places: NDArray[np.int64], size: int) -> tuple[Codes, Codes]:
    """Places in a row of `size`, as the gaps between them in a Rice code (Rice and Plaunt, 1971).

    A gap g becomes g >> r zeros and a one, and its r lowest bits: about 4.8 bits a place where a tenth of all
    are taken, 8.4 where a hundredth are. That is within 5 % of what the places could take at least.

    Args:
        places: ascending, each once.

    Returns:
        The first parts of all gaps, and the second ones, as packed bits.
    """
    low = low_bits(size, len(places))
    gaps = np.diff(places, prepend=-1) - 1
    ends = np.cumsum((gaps >> low) + 1)  # after the one of each gap
    ones = np.zeros(int(ends[-1]) if len(ends) else 0, np.uint8)
    ones[ends - 1] = 1
    rests = (gaps[:, None] >> np.arange(low - 1, -1, -1)) & 1
    return np.packbits(ones), np.packbits(rests.astype(np.uint8))


def places_read(
    heads: NDArray[np.generic], rests: NDArray[np.generic], size: int, count: int
) -> NDArray[np.int64]:
    """The places that `places_coded` wrote, (count,), ascending, each once and below `size`.

    Raises:
        UpdateRefused: they are of another dtype or length, another number, or not all below `size`.
    """
    low = low_bits(size, count)
    require_array(rests, "rests", np.dtype(np.uint8), -(-count * low // BYTE))
    most = -(-(count + (size >> low)) // BYTE)
    if heads.dtype != np.uint8 or heads.ndim != 1 or len(heads) > most:
        raise UpdateRefused(
            f"the places of its change are {heads.dtype} of shape {heads.shape}, not uint8 of at most"
            f" ({most},); apply the run file's transforms at the client"
        )
    ends = np.flatnonzero(np.unpackbits(heads.astype(np.uint8)))
    if len(ends) != count or len(heads) != (-(-(int(ends[-1]) + 1) // BYTE) if count else 0):
        raise UpdateRefused(
            f"its change has {len(ends)} places, not {count}; apply the run file's transforms at the client"
        )
    bits = unpacked(rests, count * low, 1, "rests").reshape(count, low).astype(np.int64)
    gaps = ((np.diff(ends, prepend=-1) - 1) << low) + (bits << np.arange(low - 1, -1, -1)).sum(1)
    places = np.cumsum(gaps + 1) - 1
    if count and places[-1] >= size:
        raise UpdateRefused(
            f"its change has a number at place {int(places[-1])} of {size}; apply the run file's transforms"
            " at the client"
        )
    return places


def low_bits(size: int, count: int) -> int:
    """How many low bits of a gap are written as they are: the fewest bits in all if places are random.

    The least r with 2^r >= 0.481 size / count (Kiely, JPL IPN report 42-159, 2004), in whole numbers, so that
    both ends find the same.

    >>> low_bits(1000, 100), low_bits(1000, 10), low_bits(10, 10), low_bits(5, 0)
    (3, 6, 0, 0)
    """
    return (-(-481 * size // (1000 * count)) - 1).bit_length() if count else 0
