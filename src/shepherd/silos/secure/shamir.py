"""Secret sharing (Shamir 1979): any `threshold` shares give the secret, and fewer say nothing about it.

A secret of 32 bytes is the value at 0 of a random polynomial of degree threshold - 1 over the integers modulo
the least prime above 2^256; share number x, from 1, is its value at x. Why this is not a library's:
docs/decisions/0051-secure-aggregation.md
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from math import prod

PRIME = 2**256 + 297
SECRET_BYTES = 32
SHARE_BYTES = 33
MAX_TRIES = 3_000
"""Most sets of shares that are tried where some of them are wrong."""


def split(
    secret: bytes, numbers: Sequence[int], threshold: int, entropy: Callable[[int], bytes]
) -> list[bytes]:
    """Shares with these numbers, 33 bytes each.

    Args:
        secret: 32 bytes.
        numbers: distinct, from 1 up.
        entropy: gives this many random bytes.
    """
    coefficients = [*(_uniform(entropy) for _ in range(threshold - 1)), int.from_bytes(secret, "big")]
    shares = []
    for x in numbers:
        value = 0
        for coefficient in coefficients:
            value = (value * x + coefficient) % PRIME
        shares.append(value.to_bytes(SHARE_BYTES, "big"))
    return shares


def is_share(share: bytes) -> bool:
    """Whether 33 bytes are the value of a share: a number below the prime."""
    return len(share) == SHARE_BYTES and int.from_bytes(share, "big") < PRIME


def candidates(shares: Mapping[int, bytes], threshold: int) -> Iterator[tuple[bytes, tuple[int, ...]]]:
    """Secrets that sets of `threshold` shares give, with the numbers of the set.

    The first is of the first shares as listed. In case that some of those are wrong, the others leave out one
    share each, and then are drawn at random: a caller who can check a secret takes the first candidate that
    fits. At most `MAX_TRIES` sets: where e of n shares are wrong, one set in C(n, t) / C(n - e, t) is
    right: one in 10 for 2 of 100, one in 218 for 4 of 30. A set whose shares meet in no secret of 32 bytes is
    passed over.

    Args:
        shares: number -> share; those most likely to be right first.
    """
    numbers = tuple(shares)
    values = {x: int.from_bytes(share, "big") for x, share in shares.items()}
    tried: set[tuple[int, ...]] = set()
    for chosen in itertools.islice(_sets(numbers, threshold), MAX_TRIES):
        if chosen in tried:
            continue
        tried.add(chosen)
        secret = _value_at(0, {x: values[x] for x in chosen})
        if secret < 2 ** (8 * SECRET_BYTES):
            yield secret.to_bytes(SECRET_BYTES, "big"), chosen


def _sets(numbers: Sequence[int], threshold: int) -> Iterator[tuple[int, ...]]:
    yield tuple(numbers[:threshold])
    if len(numbers) == threshold:
        return
    for left_out in numbers[:threshold]:
        yield tuple(x for x in numbers if x != left_out)[:threshold]
    system = random.SystemRandom()
    while True:
        yield tuple(sorted(system.sample(numbers, threshold), key=numbers.index))


def disagreeing(shares: Mapping[int, bytes], right: Sequence[int]) -> list[int]:
    """Numbers of the shares that are not on the polynomial through the right ones."""
    values = {x: int.from_bytes(shares[x], "big") for x in right}
    return [x for x, share in shares.items() if _value_at(x, values) != int.from_bytes(share, "big")]


def _value_at(x: int, values: Mapping[int, int]) -> int:
    """Value at x of the polynomial through all (number, value): Lagrange's interpolation."""
    if x in values:
        return values[x]
    total = 0
    for own, value in values.items():
        others = [other for other in values if other != own]
        above = prod(x - other for other in others)
        below = prod(own - other for other in others)
        total += value * above * pow(below, -1, PRIME)
    return total % PRIME


def _uniform(entropy: Callable[[int], bytes]) -> int:
    """A number from 0 to the prime, drawn again until it is below: each has the same chance."""
    while True:
        drawn = int.from_bytes(entropy(SHARE_BYTES), "big") & (2**257 - 1)
        if drawn < PRIME:
            return drawn
