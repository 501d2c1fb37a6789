"""A site's side: what it sends is what the document says, once and in order, while the rules are kept."""

from __future__ import annotations

import hashlib
import hmac

import numpy as np
import pytest
from benchmarks.secure_setting import Federation
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from benchmarks import secure_setting
from shepherd.errors import SecureError
from shepherd.silos.secure import Member, messages, primitives, transcript
from shepherd.silos.secure.member import Phase

SITES = secure_setting.names(5)


def member(min_cohort: int = 1) -> Member:
    asked = secure_setting.session(5)
    known = secure_setting.directory(SITES)
    return Member(asked, SITES[0], secure_setting.identity(SITES[0]), known, min_cohort)


def until(phase: Phase) -> Federation:
    """A federation of five whose members have answered up to a phase."""
    made = secure_setting.federation(secure_setting.session(5))
    made.seen.roster = made.server.roster({name: made.ask(Phase.KEYS, name) for name in SITES})
    if phase >= Phase.SHARES:
        answers = {name: made.ask(Phase.SHARES, name, made.seen.roster) for name in SITES}
        made.seen.delivered = made.server.deliveries(answers)
    if phase >= Phase.MASKED:
        for name in SITES:
            made.server.add(name, made.ask(Phase.MASKED, name, made.seen.delivered[name], made.codes[name]))
        made.seen.survivors = made.server.survivors()
    if phase >= Phase.AGREE:
        signed = {name: made.ask(Phase.AGREE, name, made.seen.survivors) for name in SITES}
        made.seen.signatures = made.server.signatures(signed)
    return made


def hkdf(secret: bytes, *info: bytes) -> bytes:
    """RFC 5869 with no salt and 32 bytes, over parts behind their lengths."""
    parts = b"".join(
        len(part).to_bytes(4, "little") + part for part in (b"shepherd secure aggregation 1", *info)
    )
    extracted = hmac.digest(bytes(32), secret, "sha256")
    return hmac.digest(extracted, parts + b"\x01", "sha256")


def stream(key: bytes, length: int) -> list[int]:
    drawn = Cipher(algorithms.AES256(key), modes.CTR(bytes(16))).encryptor().update(bytes(4 * length))
    return [int.from_bytes(drawn[at : at + 4], "little") for at in range(0, len(drawn), 4)]


def test_the_masks_are_those_of_the_document() -> None:
    """Written again from docs/secure-aggregation.md, with whole numbers."""
    made = until(Phase.MASKED)
    digest, length = made.session.digest(), made.session.length
    private = {name: secure_setting.private_keys(made.seed, name) for name in SITES}
    roster = hashlib.sha256(
        b"\x1d\0\0\0shepherd secure aggregation 1\x06\0\0\0roster"
        + len(made.seen.roster).to_bytes(4, "little")
        + made.seen.roster
    ).digest()
    for name in SITES:
        own = stream(hkdf(private[name][2], b"self-mask", roster, name.encode()), length)
        expected = [int(code) + mask for code, mask in zip(made.codes[name], own, strict=True)]
        for other in SITES:
            if other == name:
                continue
            public = X25519PrivateKey.from_private_bytes(private[other][0]).public_key().public_bytes_raw()
            secret = X25519PrivateKey.from_private_bytes(private[name][0])
            shared = secret.exchange(X25519PublicKey.from_public_bytes(public))
            pair = sorted((name.encode(), other.encode()))
            sign = 1 if other > name else -1
            for place, mask in enumerate(stream(hkdf(shared, b"pair-mask", roster, *pair), length)):
                expected[place] += sign * mask
        _, vector = messages.decode_masked(digest, made.seen.sent[Phase.MASKED][name], 4 * length)
        assert np.frombuffer(vector, "<u4").tolist() == [value % 2**32 for value in expected]


def test_the_keys_are_those_of_the_document() -> None:
    made = until(Phase.KEYS)
    digest = made.session.digest()
    for name in SITES:
        keys = messages.decode_keys(digest, made.seen.sent[Phase.KEYS][name])
        seed = secure_setting.private_keys(made.seed, name)[2]
        assert keys.commitment == hkdf(seed, b"commitment", digest, name.encode())
        assert keys.certificate == secure_setting.identity(name).certificate


PHASES = list(secure_setting.PHASES)


@pytest.mark.parametrize("done", [0, *PHASES])
@pytest.mark.parametrize("asked", PHASES)
def test_each_phase_is_answered_once_and_in_order(done: Phase | int, asked: Phase) -> None:
    """Another call changes nothing: the phase whose turn it is is answered afterwards."""
    if done == 0:
        made = secure_setting.federation(secure_setting.session(5))
    else:
        made = until(Phase(done))
        if done == Phase.REVEAL:
            made.ask(Phase.REVEAL, SITES[0], made.seen.signatures)
    seen = made.seen
    shown: dict[Phase, tuple[object, ...]] = {
        Phase.KEYS: (),
        Phase.SHARES: (seen.roster,),
        Phase.MASKED: (seen.delivered.get(SITES[0], b""), made.codes[SITES[0]]),
        Phase.AGREE: (seen.survivors,),
        Phase.REVEAL: (seen.signatures,),
    }
    turn = Phase(int(done) + 1)
    if asked is not turn:
        with pytest.raises(
            SecureError, match=f"site-000 was asked for {asked.name.lower()} twice or out of turn"
        ):
            made.ask(asked, SITES[0], *shown[asked])
    if turn is not Phase.OVER:
        assert made.ask(turn, SITES[0], *shown[turn])


@pytest.mark.parametrize("phase", PHASES[1:])
def test_after_a_message_that_is_not_allowed_a_member_answers_nothing_more(phase: Phase) -> None:
    made = until(Phase(phase - 1))
    codes = (made.codes[SITES[0]],) if phase is Phase.MASKED else ()
    with pytest.raises(SecureError):
        made.ask(phase, SITES[0], b"nonsense", *codes)
    for again in PHASES:
        more = {Phase.KEYS: (), Phase.MASKED: (b"", made.codes[SITES[0]])}.get(again, (b"",))
        with pytest.raises(SecureError, match="its secure sum is over"):
            made.ask(again, SITES[0], *more)


@pytest.mark.parametrize("phase", [None, *PHASES[1:]])
def test_secrets_are_gone_when_it_is_over(phase: Phase | None) -> None:
    """After the last answer, and after a refusal: no share, key or seed is left in the member."""
    made = until(Phase.AGREE if phase is None else Phase(phase - 1))
    name = SITES[0]
    if phase is None:
        made.ask(Phase.REVEAL, name, made.seen.signatures)
    else:
        codes = (made.codes[name],) if phase is Phase.MASKED else ()
        with pytest.raises(SecureError):
            made.ask(phase, name, b"", *codes)
    kept = vars(made.members[name])
    secret = set(secure_setting.private_keys(made.seed, name))
    assert not secret & {value for value in kept.values() if isinstance(value, bytes)}
    assert not any(kept[table] for table in ("_held", "_pair_keys", "_opening_keys"))


def test_when_the_codes_are_masked_only_shares_are_kept() -> None:
    """Who breaks into a site between its masked codes and the sum finds no key of its masks."""
    made = until(Phase.MASKED)
    kept = vars(made.members[SITES[0]])
    secret = set(secure_setting.private_keys(made.seed, SITES[0]))
    assert not secret & {value for value in kept.values() if isinstance(value, bytes)}
    assert kept["_held"].keys() == set(SITES)
    assert not kept["_pair_keys"]


def test_a_site_has_a_say_in_how_many_are_in_its_sum() -> None:
    with pytest.raises(SecureError, match="site-000 asks for 6 sites in a sum, and 5 are asked"):
        member(min_cohort=6)
    one = member(min_cohort=5)
    made = secure_setting.federation(secure_setting.session(5))
    made.members[SITES[0]] = one
    keys = {name: made.ask(Phase.KEYS, name) for name in SITES[:4]}
    with pytest.raises(SecureError, match="4 sites sent keys, and 5 must"):
        one.shares(made.server.roster(keys))


def test_a_site_that_was_not_asked_is_no_member() -> None:
    asked = secure_setting.session(3)
    with pytest.raises(SecureError, match=r"site x\\ny is not a member"):
        Member(asked, "x\ny", secure_setting.identity("x"), secure_setting.directory(SITES))


def test_codes_that_do_not_fit_end_the_members_part() -> None:
    made = until(Phase.SHARES)
    with pytest.raises(SecureError, match="give int64"):
        made.ask(Phase.MASKED, SITES[0], made.seen.delivered[SITES[0]], np.zeros(3, np.int64))


def test_a_dealer_that_seals_no_shares_is_named() -> None:
    """A dishonest member can seal anything well; its receiver says who it was."""
    made = until(Phase.SHARES)
    digest, roster = made.session.digest(), transcript.roster_hash(made.seen.roster)
    keys = messages.decode_roster(digest, made.seen.roster)
    private = secure_setting.private_keys(made.seed, SITES[1])[1]
    key = transcript.seal_key(
        primitives.x25519(private, keys[SITES[0]].transport_key), roster, SITES[1], SITES[0]
    )
    context = transcript.seal_context(roster, SITES[1], SITES[0])
    sealed = primitives.seal(key, b"\xff" * messages.PAIR_BYTES, context)
    held = messages.decode_delivered(digest, made.seen.delivered[SITES[0]]) | {SITES[1]: sealed}
    with pytest.raises(SecureError, match="what site-001 sent it are no shares"):
        made.ask(Phase.MASKED, SITES[0], messages.encode_delivered(digest, held), made.codes[SITES[0]])
