"""Group whole examples into rows of bounded length without padding, or into batches with little padding."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Sequence

MAX_PADDING_RATIO = 1.25
"""Most tokens of a batch, padding included, for each real token."""


def pack(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Pack examples into rows of at most `capacity` tokens, as indices; every index is in exactly one row.

    Best-fit decreasing (Johnson 1973): never more than 11/9 of the fewest rows, plus one. An example
    longer than `capacity` gets a row of its own. Deterministic; indices ascend inside a row, and
    rows are ordered by their first index.

    >>> pack([5, 3, 4, 9, 2], capacity=8)
    [[0, 1], [2, 4], [3]]

    Raises:
        ValueError: `capacity` is below one token, or a length is negative.
    """
    if capacity < 1 or min(lengths, default=0) < 0:
        raise ValueError(f"capacity is {capacity} and lengths must not be negative; give at least one token")
    rows: list[list[int]] = []
    free: list[tuple[int, int]] = []  # (tokens left, row), sorted
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        length = lengths[index]
        place = bisect_left(free, (length, -1))
        if place < len(free):
            left, row = free.pop(place)
            rows[row].append(index)
        else:
            left, row = capacity, len(rows)
            rows.append([index])
        if length <= capacity:
            insort(free, (left - length, row))
    return sorted(sorted(row) for row in rows)


def batches(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Batch examples of similar length; padded to its longest, no batch has over `capacity` tokens.

    At most a fifth of a batch is padding. An example longer than `capacity` is a batch of its own.
    Deterministic; the longest come first.

    >>> batches([5, 3, 4, 9, 2], capacity=12)
    [[3], [0, 2], [1, 4]]
    """
    found: list[list[int]] = []
    real = 0
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        real += lengths[index]
        padded = lengths[found[-1][0]] * (len(found[-1]) + 1) if found else 0
        if found and padded <= min(capacity, MAX_PADDING_RATIO * real):
            found[-1].append(index)
        else:
            found.append([index])
            real = lengths[index]
    return found
