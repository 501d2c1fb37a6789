"""Send only the largest numbers of a change, with their places; what is left out waits for the next visit.

Of the n numbers of all tensors together, the k = ceil(share n) of the largest size are sent (FLASC, arXiv
2406.05233): each in `bits` bits with a scale for every `block` of them, as `quantise` does, and its place as
the gap to the one before in a Rice code, about 5 bits a number where a tenth are sent and 8.5 where a
hundredth are. The server decodes them to a change that is zero elsewhere.

    m  <-  m + delta - sent    (error feedback: Stich et al., arXiv 1809.07599)

With `feedback` a client adds m, what it has left out so far, to its change before it chooses; m is kept with
the client, so it is for clients that are asked again. Without feedback the small numbers of a change are
lost, and the values that are sent are rounded at random without a bias.

FLASC also sends each client a part of the adapter alone; here the broadcast stays whole and in full
precision.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from shepherd.config import PositiveShare, Table
from shepherd.core import Layout, Payload, Transform
from shepherd.core.encoding import (
    Flat,
    blocks,
    dequantised,
    places_coded,
    places_read,
    quantised,
    require_parts,
    size_of,
)
from shepherd.transforms.quantise import CODES, SCALES, Bits, Block, encoding

NAME = "top_k"
PLACES, RESTS = "places", "rests"


class Config(Table):
    share: PositiveShare = 0.1
    """Share of a change's numbers that are sent."""
    bits: Bits = 8
    """Bits of one number that is sent: 8, 4 or 1."""
    block: Block = 64
    """Numbers that are sent that share a scale of 16 bits."""
    feedback: bool = True
    """Whether a client adds what it left out to its next change, for clients that are asked again."""


def build(config: Config) -> Transform:
    """Build both halves: choose and encode at the client, decode on arrival."""

    def write(row: Flat, layout: Layout, rng: np.random.Generator | None) -> Payload:
        places = largest(row, _count(len(row), config.share))
        heads, rests = places_coded(places, len(row))
        codes, scales = quantised(row[places], _starts(len(places), config.block), config.bits, rng)
        return Payload({PLACES: heads, RESTS: rests, CODES: codes, SCALES: scales})

    def read(sent: Payload, layout: Layout) -> Flat:
        require_parts(sent, (CODES, PLACES, RESTS, SCALES), NAME)
        size = sum(map(size_of, layout.values()))
        count = _count(size, config.share)
        row = np.zeros(size, np.float32)
        places = places_read(sent[PLACES], sent[RESTS], size, count)
        starts = _starts(count, config.block)
        row[places] = dequantised(sent[CODES], sent[SCALES], starts, count, config.bits)
        return row

    return encoding(write, read, feedback=config.feedback)


def largest(row: Flat, count: int) -> NDArray[np.int64]:
    """The places of the largest numbers by size, ascending; of equal ones the first.

    A number that is not finite counts as the largest, so that the server hears of it.

    >>> largest(np.array([1, -3, 2, -2], np.float32), 2).tolist()
    [1, 2]
    """
    sizes = np.where(np.isfinite(row), np.abs(row), np.inf)
    if not count:
        return np.zeros(0, np.int64)
    least = np.partition(sizes, len(sizes) - count)[len(sizes) - count]
    above, equal = np.flatnonzero(sizes > least), np.flatnonzero(sizes == least)
    return np.sort(np.concatenate([above, equal[: count - len(above)]]))


def _count(size: int, share: float) -> int:
    return math.ceil(share * size - 1e-9)  # 0.1 of 30 is 3, not 4


def _starts(count: int, block: int) -> NDArray[np.int64]:
    return blocks({"values": count}, block)
