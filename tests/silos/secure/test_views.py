"""What the server sees of one site: noise, and exactly as much of one vector as of any other.

AES in counter mode stands for a random function. Under it, all that a server sees is the same for two sets of
codes with the same sum, each under its own mask: a one-time pad.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
from benchmarks.secure_setting import Codes, Federation, Seen
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from benchmarks import secure_setting
from shepherd.silos.secure import Member, masks, messages, primitives, transcript
from shepherd.silos.secure.member import Phase

SITES = secure_setting.names(7)
LENGTH = 4_096
RUNS = 32


def vector(seen: Seen, name: str, ring_bits: int = 32) -> NDArray[np.unsignedinteger]:
    """A site's masked codes as the server has them."""
    message = seen.sent[Phase.MASKED][name]
    return np.frombuffer(message[72:], masks.dtype(ring_bits)).copy()


def chi_square(values: NDArray[np.unsignedinteger]) -> float:
    """Standard deviations by which the 256 counts of bytes are further from equal than of uniform ones."""
    counts = np.bincount(np.frombuffer(values.tobytes(), np.uint8), minlength=256)
    expected = counts.sum() / 256
    return float(((counts - expected) ** 2 / expected).sum() - 255) / math.sqrt(2 * 255)


def bits_off(values: NDArray[np.unsignedinteger]) -> float:
    """The largest of the standard deviations by which a bit's mean is off 1/2."""
    bits = np.unpackbits(values.view(np.uint8).reshape(-1, values.itemsize), axis=1)
    return float(np.abs(bits.mean(axis=0) - 0.5).max() * 2 * math.sqrt(len(bits)))


@pytest.fixture(scope="module")
def runs() -> list[Federation]:
    """The same codes, all 1, under new secrets in each run; these are seeded, so nothing here can flake."""
    made = []
    for seed in range(RUNS):
        asked = secure_setting.session(3, LENGTH, attempt=seed)
        codes = dict.fromkeys(asked.members, np.ones(LENGTH, np.int64))
        one = secure_setting.federation(asked, seed, codes)
        assert set(secure_setting.play(one)) == {3}
        made.append(one)
    return made


def without_self_mask(made: Federation, name: str) -> NDArray[np.unsignedinteger]:
    """What the server has of a survivor when all shares are revealed: the masks of pairs are left."""
    seed = secure_setting.private_keys(made.seed, name)[2]
    left = vector(made.seen, name)
    masks.mask(left, (), [transcript.self_mask_key(seed, transcript.roster_hash(made.seen.roster), name)])
    return left


@pytest.mark.parametrize("view", ["masked", "without self-mask", "two sites"])
def test_the_view_of_a_site_is_noise(runs: list[Federation], view: str) -> None:
    """Of 3 sites' constant codes: one vector as sent; one after the sum is open; the sum of two of three."""
    values = np.concatenate(
        [
            vector(made.seen, "site-000")
            if view == "masked"
            else without_self_mask(made, "site-000")
            if view == "without self-mask"
            else without_self_mask(made, "site-000") + without_self_mask(made, "site-001")
            for made in runs
        ]
    )
    assert len(values) == RUNS * LENGTH
    assert abs(chi_square(values)) < 4
    assert bits_off(values) < 4
    by_run = values.reshape(RUNS, LENGTH) / 2.0**32 - 0.5
    neighbours = (by_run[:, 1:] * by_run[:, :-1]).mean() * 12 * math.sqrt(values.size)
    across = (by_run[1:] * by_run[:-1]).mean() * 12 * math.sqrt(values.size)
    assert abs(neighbours) < 4
    assert abs(across) < 4


def test_these_tests_see_what_is_not_noise(runs: list[Federation]) -> None:
    """The sum of all three, whose masks cancel; codes of half of the ring; a stream that is used twice."""
    made = runs[0]
    total = sum((without_self_mask(made, name) for name in made.session.members), np.zeros(LENGTH, "<u4"))
    assert set(total.tolist()) == {3}
    assert chi_square(total) > 1_000
    half = np.random.default_rng(0).integers(0, 2**31, LENGTH, dtype=np.uint32)
    assert bits_off(half) > 10


class Shifted:
    """Keystreams where one key's stream is another: shifted by a vector. For the one-time pad's argument."""

    def __init__(self, key: bytes, shift: NDArray[np.unsignedinteger]) -> None:
        self.key, self.shift = key, shift

    def __call__(self, key: bytes) -> Shifted.Stream:
        return Shifted.Stream(primitives.Keystream(key), self.shift if key == self.key else None)

    class Stream:
        def __init__(self, plain: primitives.Keystream, shift: NDArray[np.unsignedinteger] | None) -> None:
            self.plain, self.shift = plain, shift

        def fill(self, buffer: bytearray, zeros: memoryview) -> None:
            self.plain.fill(buffer, zeros)
            if self.shift is not None:
                drawn = np.frombuffer(buffer, self.shift.dtype, len(self.shift))
                np.add(drawn, self.shift, out=drawn)


def pair_key(made: Federation, one: str, other: str) -> bytes:
    """The key of the mask between two sites."""
    private = secure_setting.private_keys(made.seed, one)[0]
    public = primitives.x25519_public(secure_setting.private_keys(made.seed, other)[0])
    roster = transcript.roster_hash(made.seen.roster)
    return transcript.pair_mask_key(primitives.x25519(private, public), roster, one, other)


CODES = st.lists(st.integers(-(2**31) + 1, 2**31 - 1), min_size=3, max_size=3).map(
    lambda codes: np.array(codes, np.int64)
)


@settings(max_examples=8, deadline=None)
@given(CODES, st.sampled_from(SITES[1:5]))
def test_any_codes_of_a_survivor_explain_all_that_the_server_sees(codes: Codes, friend: str) -> None:
    """Exactly: two survivors' codes with the same sum, and one other stream, give the same bytes throughout.

    All other secrets may be known: those of the colluders (two of seven, which is 2t - n - 1) and even those
    of the other honest sites. The one thing unknown is the stream between the two.
    """
    asked = secure_setting.session(7, 3)
    real = secure_setting.federation(asked, 5)
    total = secure_setting.play(real, {SITES[6]: Phase.MASKED})
    victim = SITES[0]
    moved = codes - real.codes[victim]
    wrapped = secure_setting.total({"": real.codes[friend] - moved}, [""], 32)
    other = secure_setting.federation(asked, 5, real.codes | {victim: codes, friend: wrapped})
    shift = (-moved).astype(np.uint64).astype(masks.dtype(32))  # the victim comes first, and adds the stream
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(masks, "Keystream", Shifted(pair_key(real, victim, friend), shift))
        assert secure_setting.play(other, {SITES[6]: Phase.MASKED}).tolist() == total.tolist()
    assert other.seen == real.seen


@settings(max_examples=8, deadline=None)
@given(CODES)
def test_any_codes_of_a_site_that_left_explain_all_that_the_server_sees(codes: Codes) -> None:
    """Its vector came too late and its mask key is revealed: the self-mask alone covers it, and is enough."""
    asked = secure_setting.session(7, 3)
    victim = SITES[0]

    def late(made: Federation) -> Seen:
        """The server has the victim's vector, and tells everyone that it is not in the sum."""
        made.seen.roster = made.server.roster({name: made.ask(Phase.KEYS, name) for name in SITES})
        shares = {name: made.ask(Phase.SHARES, name, made.seen.roster) for name in SITES}
        made.seen.delivered = made.server.deliveries(shares)
        for name in SITES:
            answer = made.ask(Phase.MASKED, name, made.seen.delivered[name], made.codes[name])
            if name != victim:
                made.server.add(name, answer)
        made.seen.survivors = made.server.survivors()
        signed = {name: made.ask(Phase.AGREE, name, made.seen.survivors) for name in SITES[1:]}
        made.seen.signatures = made.server.signatures(signed)
        made.server.total({name: made.ask(Phase.REVEAL, name, made.seen.signatures) for name in SITES[1:]})
        return made.seen

    real = secure_setting.federation(asked, 5)
    view = late(real)
    known = secure_setting.shares_known(real, SITES[5:])
    assert len(known[victim, messages.Secret.MASK_KEY]) >= asked.threshold
    assert len(known[victim, messages.Secret.SELF_MASK]) == 2 < asked.threshold  # the colluders' own
    seed = secure_setting.private_keys(5, victim)[2]
    key = transcript.self_mask_key(seed, transcript.roster_hash(view.roster), victim)
    other = secure_setting.federation(asked, 5, real.codes | {victim: codes})
    with pytest.MonkeyPatch.context() as patched:
        shift = (real.codes[victim] - codes).astype(np.uint64).astype(masks.dtype(32))
        patched.setattr(masks, "Keystream", Shifted(key, shift))
        assert late(other) == view


def test_secrets_are_drawn_anew_and_used_once() -> None:
    """Members with the system's entropy: no key, commitment or vector of one attempt is that of another."""
    asked = secure_setting.session(3)
    known = secure_setting.directory(asked.members)
    seen = [
        messages.decode_keys(asked.digest(), Member(asked, name, secure_setting.identity(name), known).keys())
        for name in asked.members
        for _ in range(2)
    ]
    drawn = {part for keys in seen for part in (keys.mask_key, keys.transport_key, keys.commitment)}
    assert len(drawn) == 3 * len(seen)
