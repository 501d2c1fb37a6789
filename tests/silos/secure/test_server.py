"""The server's side: sums are right whoever leaves, wrong answers are named, and too few end the sum."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable

import numpy as np
import pytest
from benchmarks.secure_setting import PHASES, Federation
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks import secure_setting
from shepherd.errors import SecureError
from shepherd.silos.secure import SumServer, masks, messages
from shepherd.silos.secure.member import Phase
from shepherd.silos.secure.messages import Secret

SITES = secure_setting.names(7)


@settings(max_examples=40, deadline=None)
@given(st.integers(3, 12), st.integers(1, 40), st.sampled_from([32, 64]), st.integers(0, 2**32), st.data())
def test_the_sum_is_that_of_whole_numbers_or_there_is_none(
    count: int, length: int, ring_bits: int, seed: int, data: st.DataObject
) -> None:
    """Whoever leaves in whatever phase. The plain sum is of Python's whole numbers."""
    asked = secure_setting.session(count, length, ring_bits)
    least = asked.threshold
    leaving = data.draw(st.integers(0, min(count, count - least + 1)))
    gone = {
        name: data.draw(st.sampled_from(PHASES))
        for name in data.draw(st.permutations(asked.members))[:leaving]
    }
    codes = secure_setting.random_codes(asked, seed, 2 ** (ring_bits - 1) - 1)  # sums wrap around
    made = secure_setting.federation(asked, seed, codes)
    if count - leaving >= least:
        total = secure_setting.play(made, gone)
        in_sum = [name for name in asked.members if gone.get(name, Phase.OVER) > Phase.MASKED]
        assert total.dtype == np.int64
        assert total.tolist() == secure_setting.total(codes, in_sum, ring_bits).tolist()
        assert made.server.dropped.keys() == set(asked.members) - set(in_sum)
    else:
        with pytest.raises(SecureError, match=rf"of {count} sites .*, and a secure sum needs {least}"):
            secure_setting.play(made, gone)
        if made.seen.roster:
            assert all(len(shares) < least for shares in secure_setting.shares_known(made).values())


def test_what_it_says_of_those_who_leave() -> None:
    asked = secure_setting.session(12)
    made = secure_setting.federation(asked)
    leaving = dict(zip(asked.members, (Phase.KEYS, Phase.SHARES, Phase.MASKED), strict=False))
    secure_setting.play(made, leaving)
    assert list(made.server.dropped.values()) == ["sent no keys", "sent no shares", "sent no masked codes"]
    assert not made.server.faulty
    made = secure_setting.federation(asked)
    secure_setting.play(made, dict(zip(asked.members, (Phase.AGREE, Phase.REVEAL), strict=False)))
    assert not made.server.dropped
    assert list(made.server.faulty.values()) == ["signed no survivors", "revealed no shares"]


def federation(phase: Phase, names: tuple[str, ...], change: Callable[[bytes], bytes]) -> Federation:
    """Seven members, some of whom change what they answer in a phase."""
    made = secure_setting.federation(secure_setting.session(7))
    made.changes = {(phase, name): change for name in names}
    return made


def flipped(place: int) -> Callable[[bytes], bytes]:
    """A change of the lowest bit of one byte."""

    def change(answer: bytes) -> bytes:
        changed = bytearray(answer)
        changed[place] ^= 1
        return bytes(changed)

    return change


@pytest.mark.parametrize(
    ("phase", "change", "reason"),
    [
        (Phase.KEYS, lambda answer: answer[:-1], "a message of secure aggregation (keys) is cut"),
        (
            Phase.KEYS,
            flipped(-1),
            "sent keys that do not verify (a signature of site site-002 does not verify)",
        ),
        (
            Phase.KEYS,
            flipped(50),
            "sent keys that do not verify (a signature of site site-002 does not verify)",
        ),
        (
            Phase.SHARES,
            lambda answer: answer.replace(b"site-000", b"other-00"),
            "sent shares for other sites than the roster's",
        ),
        (Phase.SHARES, lambda answer: b"", "a message of secure aggregation (shares) is cut"),
    ],
)
def test_an_answer_that_cannot_be_used_costs_the_sender_its_place(
    phase: Phase, change: Callable[[bytes], bytes], reason: str
) -> None:
    made = federation(phase, (SITES[2],), change)
    total = secure_setting.play(made)
    others = [name for name in SITES if name != SITES[2]]
    assert total.tolist() == secure_setting.total(made.codes, others, 32).tolist()
    assert made.server.dropped[SITES[2]].startswith(reason)


def test_two_members_with_one_key_are_both_left_out() -> None:
    asked = secure_setting.session(7)
    made = secure_setting.federation(asked)
    copied = messages.decode_keys(asked.digest(), made.ask(Phase.KEYS, SITES[0])).mask_key
    server, keys = SumServer(asked), {name: made.ask(Phase.KEYS, name) for name in SITES[1:]}
    keys[SITES[0]] = made.seen.sent[Phase.KEYS][SITES[0]]
    keys[SITES[1]] = keys[SITES[1]].replace(keys[SITES[1]][40:72], copied)
    server.roster(keys)
    assert server.dropped == dict.fromkeys(SITES[:2], "has a key that occurs twice")


@pytest.mark.parametrize("wrong", [SITES[:1], SITES[-1:], SITES[2:4], (SITES[0], SITES[6])])
def test_wrong_shares_are_found_and_the_sum_is_right(wrong: tuple[str, ...]) -> None:
    """Seven reveal, five are enough: two wrong ones are left out, and named if they stood in the way.

    The last byte is that of the share of site-006's self-mask.
    """
    made = federation(Phase.REVEAL, wrong, flipped(-1))
    total = secure_setting.play(made)
    assert total.tolist() == secure_setting.total(made.codes, SITES, 32).tolist()
    reason = "its share of a secret of site-006 is wrong: one of the two sent another"
    assert made.server.faulty == (dict.fromkeys(wrong, reason) if wrong != SITES[-1:] else {})


def test_too_many_wrong_shares_end_the_sum_and_name_whose_secret_it_is() -> None:
    made = federation(Phase.REVEAL, SITES[:3], flipped(-1))
    with pytest.raises(
        SecureError, match="the shares of the self-mask of site site-006 do not give what it comm"
    ):
        secure_setting.play(made)


@pytest.mark.parametrize("which", list(Secret))
def test_a_dealer_whose_shares_are_of_another_secret_is_named(which: Secret) -> None:
    """It commits to one secret and deals shares of another: never a wrong sum in silence."""
    made = secure_setting.federation(secure_setting.session(7))
    dealer = made.members[SITES[1]]
    keys = {name: made.ask(Phase.KEYS, name) for name in SITES}
    setattr(dealer, "_seed" if which is Secret.SELF_MASK else "_mask_private", bytes(32))
    roster = made.server.roster(keys)
    shares = {name: made.ask(Phase.SHARES, name, roster) for name in SITES}
    delivered = made.server.deliveries(shares)
    staying = SITES if which is Secret.SELF_MASK else [name for name in SITES if name != SITES[1]]
    for name in staying:
        made.server.add(name, made.ask(Phase.MASKED, name, delivered[name], made.codes[name]))
    survivors = made.server.survivors()
    signatures = made.server.signatures({name: made.ask(Phase.AGREE, name, survivors) for name in staying})
    revealed = {name: made.ask(Phase.REVEAL, name, signatures) for name in staying}
    what = "self-mask" if which is Secret.SELF_MASK else "mask key"
    with pytest.raises(SecureError, match=f"the shares of the {what} of site site-001 do not give"):
        made.server.total(revealed)


@pytest.mark.parametrize(
    ("phase", "change", "reason"),
    [
        (Phase.AGREE, flipped(-1), "a signature of site site-002 does not verify"),
        (Phase.AGREE, lambda answer: b"", "a message of secure aggregation (agreed) is cut"),
        (Phase.REVEAL, lambda answer: b"", "a message of secure aggregation (revealed) is cut"),
        (Phase.REVEAL, flipped(51), "revealed other shares than those that were asked for"),
    ],
)
def test_a_wrong_late_answer_is_left_out_and_the_sum_is_right(
    phase: Phase, change: Callable[[bytes], bytes], reason: str
) -> None:
    made = federation(phase, (SITES[2],), change)
    total = secure_setting.play(made)
    assert total.tolist() == secure_setting.total(made.codes, SITES, 32).tolist()
    assert made.server.faulty[SITES[2]].startswith(reason)


def masked() -> tuple[Federation, dict[str, bytes]]:
    """A federation in the phase of masked codes, and everyone's."""
    made = secure_setting.federation(secure_setting.session(7))
    roster = made.server.roster({name: made.ask(Phase.KEYS, name) for name in SITES})
    delivered = made.server.deliveries({name: made.ask(Phase.SHARES, name, roster) for name in SITES[:6]})
    return made, {name: made.ask(Phase.MASKED, name, delivered[name], made.codes[name]) for name in SITES[:6]}


def test_masked_codes_are_added_once_whole_and_from_dealers() -> None:
    made, answers = masked()
    server = made.server
    with pytest.raises(SecureError, match="site-006 sent masked codes and no shares"):
        server.add(SITES[6], answers[SITES[0]])
    server.add(SITES[0], answers[SITES[0]])
    with pytest.raises(SecureError, match="site-000 sent masked codes twice"):
        server.add(SITES[0], answers[SITES[0]])
    with pytest.raises(SecureError, match="12 bytes where 16 were asked for"):
        server.add(SITES[1], answers[SITES[1]][:-4])
    assert server.dropped[SITES[1]] == "a masked vector has 12 bytes where 16 were asked for"
    with pytest.raises(SecureError, match="site-001 sent masked codes twice"):
        server.add(SITES[1], answers[SITES[1]])
    for name in SITES[2:6]:
        server.add(name, answers[name])
    server.survivors()
    with pytest.raises(SecureError, match="went on with add of a secure sum, and signatures was next"):
        server.add(SITES[1], answers[SITES[1]])


def test_codes_that_were_masked_for_other_dealers_are_refused() -> None:
    made, answers = masked()
    with pytest.raises(SecureError, match="site-000 masked its codes for other sites"):
        made.server.add(SITES[0], flipped(45)(answers[SITES[0]]))
    assert "for other sites" in made.server.dropped[SITES[0]]


def test_steps_are_taken_once_and_in_order() -> None:
    made = secure_setting.federation(secure_setting.session(3))
    with pytest.raises(SecureError, match="went on with total of a secure sum, and roster was next"):
        made.server.total({})
    secure_setting.play(made)
    with pytest.raises(SecureError, match="went on with roster of a secure sum, and over was next"):
        made.server.roster({})


def test_an_answer_of_nobody_is_refused() -> None:
    made = secure_setting.federation(secure_setting.session(3))
    with pytest.raises(SecureError, match=r"x\\ny answered in a secure sum and was not asked"):
        made.server.roster({"x\ny": b""})


def test_memory_does_not_grow_with_the_members() -> None:
    """One running sum (law 5): what is added is not kept."""
    length = 2**18
    made = secure_setting.federation(secure_setting.session(12, length))
    members = made.session.members
    roster = made.server.roster({name: made.ask(Phase.KEYS, name) for name in members})
    delivered = made.server.deliveries({name: made.ask(Phase.SHARES, name, roster) for name in members})
    tracemalloc.start()
    for name in members:
        made.server.add(name, made.members[name].masked(delivered[name], np.zeros(length, np.int64)))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    vector = masks.dtype(32).itemsize * length
    assert peak < 6 * vector  # one member's codes (2), its vector and message, and some room; not 12
