"""Shares: any threshold of them give the secret, fewer say nothing, and wrong ones are found out."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shepherd.silos.secure import shamir

SECRET = bytes(range(32))
SHAMIRS = [
    "00128c8e71774c65d7ac9c462aa08a33355877ea51f0d8c6eeed7e4c9f81463e68",
    "001e9e1f2ee293f4bc29b1163e62c94e5ca3a8495fe7cfd064930a21d9319bad1f",
    "002435b43b45dbb2b47f477a4652ca5f84f1a22f3cf8fa327808bc99c82d1d6a44",
    "0023534d96a1239fc0ad5f7242708d66ae42659be92457ed294e95b46c73cb75d7",
    "001bf6eb40f46bbbe0b3f8fe32bc1263d895f28f6469e90078649571c605a5cfd8",
]
"""Shares of SECRET with threshold 3, made by the PyPI package shamirs 4.0.0 with our prime as its modulus."""


def entropy(seed: int) -> random.Random:
    return random.Random(seed)


def dealt(secret: bytes, count: int, threshold: int, seed: int = 0) -> dict[int, bytes]:
    numbers = range(1, count + 1)
    shares = shamir.split(secret, numbers, threshold, entropy(seed).randbytes)
    return dict(zip(numbers, shares, strict=True))


def opened(shares: dict[int, bytes], threshold: int) -> bytes:
    secret, _ = next(shamir.candidates(shares, threshold))
    return secret


def test_the_modulus_is_the_least_prime_above_two_to_the_256() -> None:
    """By Fermat's test: what fails it is composite."""
    assert all(pow(base, shamir.PRIME - 1, shamir.PRIME) == 1 for base in (2, 3))
    for less in range(1, 297, 2):
        assert pow(3, 2**256 + less - 1, 2**256 + less) != 1


def test_shares_of_another_implementation_are_opened() -> None:
    shares = {number: bytes.fromhex(share) for number, share in enumerate(SHAMIRS, start=1)}
    assert opened(shares, 3) == SECRET
    assert opened({number: shares[number] for number in (5, 2, 4)}, 3) == SECRET
    assert shamir.disagreeing(shares, (1, 2, 3)) == []


def test_a_share_by_hand() -> None:
    """Secret 7 with coefficients 3 and 2 is 2 x^2 + 3 x + 7: 12, 21 and 34 at 1, 2 and 3."""
    drawn = iter([2, 3])
    shares = shamir.split(
        (7).to_bytes(32, "big"), (1, 2, 3), 3, lambda size: next(drawn).to_bytes(size, "big")
    )
    assert [int.from_bytes(share, "big") for share in shares] == [12, 21, 34]


@settings(max_examples=25, deadline=None)
@given(st.binary(min_size=32, max_size=32), st.data())
def test_any_threshold_of_shares_gives_the_secret(secret: bytes, data: st.DataObject) -> None:
    count = data.draw(st.integers(3, 12))
    threshold = data.draw(st.integers(2, count))
    shares = dealt(secret, count, threshold, data.draw(st.integers(0, 2**32)))
    chosen = data.draw(st.permutations(list(shares)))[:threshold]
    assert opened({number: shares[number] for number in chosen}, threshold) == secret
    assert all(map(shamir.is_share, shares.values()))


@settings(max_examples=25, deadline=None)
@given(st.binary(min_size=32, max_size=32), st.binary(min_size=32, max_size=32), st.integers(0, 2**32))
def test_fewer_shares_fit_every_secret(secret: bytes, other: bytes, seed: int) -> None:
    """For each other secret there is one polynomial through the same shares: they say nothing of it."""
    shares = dealt(secret, 7, 5, seed)
    known = {number: int.from_bytes(shares[number], "big") for number in (1, 3, 4, 7)}
    through = known | {0: int.from_bytes(other, "big")}
    alternative = {x: shamir._value_at(x, through).to_bytes(33, "big") for x in shares}
    assert all(alternative[number] == shares[number] for number in known)
    assert opened({number: alternative[number] for number in (2, 3, 4, 5, 6)}, 5) == other


def test_coefficients_are_uniform_below_the_prime() -> None:
    """The bits above are cleared, and a number that is not below the prime is drawn again."""
    drawn = iter([b"\xff" * 33, shamir.PRIME.to_bytes(33, "big"), (shamir.PRIME - 1).to_bytes(33, "big")])
    assert shamir._uniform(lambda size: next(drawn)) == shamir.PRIME - 1
    draws = entropy(1)
    values = [shamir._uniform(draws.randbytes) for _ in range(2_000)]
    assert abs(sum(values) / len(values) / shamir.PRIME - 0.5) < 0.03  # 4.6 standard deviations, seeded
    assert max(values) > 0.99 * shamir.PRIME


@pytest.mark.parametrize("wrong", [(1,), (5,), (1, 2), (3, 7), (6, 7)])
def test_wrong_shares_are_left_out_and_named(wrong: tuple[int, ...]) -> None:
    shares = dealt(SECRET, 7, 5)
    for number in wrong:
        shares[number] = bytes(32) + bytes([number])
    found = [(secret, used) for secret, used in shamir.candidates(shares, 5) if secret == SECRET]
    assert found
    assert not set(wrong) & set(found[0][1])
    assert shamir.disagreeing(shares, found[0][1]) == list(wrong)


def test_more_wrong_shares_than_can_be_spared_give_no_secret() -> None:
    shares = dealt(SECRET, 7, 5) | {number: bytes(32) + bytes([number]) for number in (1, 2, 3)}
    candidates = list(shamir.candidates(shares, 5))
    assert candidates
    assert all(secret != SECRET for secret, _ in candidates)


@pytest.mark.parametrize(("members", "wrong"), [(100, 2), (30, 3), (30, 4)])
def test_wrong_shares_are_found_among_many(members: int, wrong: int) -> None:
    """Sets drawn at random find a right one in few tries, wherever the wrong ones are in the list."""
    needed = 2 * members // 3 + 1
    lying = range(1, 1 + wrong)
    shares = dealt(SECRET, members, needed) | {number: bytes(32) + bytes([number]) for number in lying}
    used = next(used for secret, used in shamir.candidates(shares, needed) if secret == SECRET)
    assert not set(lying) & set(used)
    assert shamir.disagreeing(shares, used) == list(lying)


def test_the_search_ends() -> None:
    shares = dealt(SECRET, 40, 10) | {number: bytes(32) + bytes([number]) for number in range(1, 35)}
    assert len(list(shamir.candidates(shares, 10))) <= shamir.MAX_TRIES


def test_a_number_that_is_not_below_the_prime_is_no_share() -> None:
    assert shamir.is_share((shamir.PRIME - 1).to_bytes(33, "big"))
    assert not shamir.is_share(shamir.PRIME.to_bytes(33, "big"))
    assert not shamir.is_share(bytes(32))
