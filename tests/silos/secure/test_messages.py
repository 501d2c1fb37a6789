"""Messages: what is written is read, and everything else is a SecureError."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks import secure_setting
from shepherd.errors import SecureError
from shepherd.silos.secure import masks, messages, survivors_of
from shepherd.silos.secure.messages import Keys, Kind, Secret

DIGEST = bytes(range(32))
NAMES = st.text("abcXYZ-_é東", min_size=1, max_size=8)
KEYS = st.builds(
    Keys,
    mask_key=st.binary(min_size=32, max_size=32),
    transport_key=st.binary(min_size=32, max_size=32),
    commitment=st.binary(min_size=32, max_size=32),
    certificate=st.binary(max_size=40),
    signature=st.binary(max_size=40),
)
SEALED = st.binary(min_size=messages.SEALED_BYTES, max_size=messages.SEALED_BYTES)
SHARES = st.binary(min_size=32, max_size=32).map(lambda share: b"\0" + share)


def table(values: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    return st.dictionaries(NAMES, values, max_size=4)


CASES: list[tuple[Callable[..., bytes], Callable[..., Any], st.SearchStrategy[Any]]] = [
    (messages.encode_keys, messages.decode_keys, KEYS),
    (messages.encode_roster, messages.decode_roster, table(KEYS)),
    (messages.encode_shares, messages.decode_shares, table(SEALED)),
    (messages.encode_delivered, messages.decode_delivered, table(SEALED)),
    (messages.encode_agreed, messages.decode_agreed, st.binary(max_size=1_024)),
    (messages.encode_signatures, messages.decode_signatures, table(st.binary(max_size=40))),
    (
        messages.encode_revealed,
        messages.decode_revealed,
        table(st.tuples(st.sampled_from(list(Secret)), SHARES)),
    ),
]
ENDS = [pytest.param(*case, id=case[0].__name__.removeprefix("encode_")) for case in CASES]


@pytest.mark.parametrize(("encode", "decode", "values"), ENDS)
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_what_is_written_is_read(encode: Any, decode: Any, values: Any, data: st.DataObject) -> None:
    value = data.draw(values)
    message = encode(DIGEST, value)
    assert decode(DIGEST, message) == value
    cut = data.draw(st.integers(0, len(message) - 1))
    for wrong in (message[:cut], message + b"\0"):
        with pytest.raises(SecureError):
            decode(DIGEST, wrong)
    with pytest.raises(SecureError, match="another session"):
        decode(bytes(32), message)


@pytest.mark.parametrize(("encode", "decode", "values"), ENDS)
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_a_changed_byte_is_read_to_the_same_bytes_or_refused(
    encode: Any, decode: Any, values: Any, data: st.DataObject
) -> None:
    """There is one way to write a value."""
    message = bytearray(encode(DIGEST, data.draw(values)))
    message[data.draw(st.integers(0, len(message) - 1))] ^= data.draw(st.integers(1, 255))
    with suppress(SecureError):
        assert encode(DIGEST, decode(DIGEST, bytes(message))) == message


@pytest.mark.parametrize(("encode", "decode", "values"), ENDS)
@settings(max_examples=25, deadline=None)
@given(body=st.binary(max_size=200), kind=st.sampled_from(list(Kind)))
def test_any_bytes_are_read_or_refused(
    encode: Any, decode: Any, values: Any, body: bytes, kind: Kind
) -> None:
    del encode, values
    with suppress(SecureError):
        decode(DIGEST, messages.MAGIC + bytes([kind]) + DIGEST + body)
    with pytest.raises(SecureError):
        decode(DIGEST, body)


def test_a_message_by_hand() -> None:
    assert messages.encode_survivors(DIGEST, ("b", "é")) == (
        b"SecSum1\x06" + DIGEST + b"\x02\x00" + b"\x01b" + b"\x02\xc3\xa9"
    )
    share = b"\x01" + bytes(32)
    assert messages.encode_revealed(DIGEST, {"b": (Secret.MASK_KEY, share)}) == (
        b"SecSum1\x09" + DIGEST + b"\x01\x00" + b"\x01b" + b"\x01" + share
    )


def test_a_masked_vector_has_the_length_that_was_asked() -> None:
    vector = np.arange(3).astype(masks.dtype(32))
    message = messages.encode_masked(DIGEST, bytes(32), vector)
    assert message[72:] == b"\0\0\0\0\x01\0\0\0\x02\0\0\0"
    dealers, read = messages.decode_masked(DIGEST, message, 12)
    assert (dealers, bytes(read)) == (bytes(32), message[72:])
    with pytest.raises(SecureError, match="12 bytes where 16 were asked"):
        messages.decode_masked(DIGEST, message, 16)
    with pytest.raises(SecureError, match="is cut"):
        messages.decode_masked(DIGEST, message[:50], 12)


@settings(max_examples=25, deadline=None)
@given(st.sets(NAMES, max_size=4))
def test_survivors_are_read_without_a_session(names: set[str]) -> None:
    assert survivors_of(messages.encode_survivors(DIGEST, names)) == tuple(sorted(names))


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        (b"\x02\x00\x01b\x01a", "out of order"),
        (b"\x02\x00\x01b\x01b", "one of them twice"),
        (b"\x01\x00\x00", "out of order"),
        (b"\x01\x00\x01\xff", "not UTF-8"),
        (b"\x01\x00\x03a\xcc\x81", "is no name"),
        (b"\xff\xff", "lists 65535 sites"),
    ],
)
def test_lists_are_strict(body: bytes, sentence: str) -> None:
    with pytest.raises(SecureError, match=sentence):
        survivors_of(b"SecSum1\x06" + DIGEST + body)


def test_fields_are_bounded() -> None:
    long = Keys(
        mask_key=bytes(32),
        transport_key=bytes(32),
        commitment=bytes(32),
        certificate=bytes(16_385),
        signature=b"",
    )
    with pytest.raises(SecureError, match="a field of 16385 bytes, and the limit is 16384"):
        messages.decode_keys(DIGEST, messages.encode_keys(DIGEST, long))
    with pytest.raises(SecureError, match="a share that is none"):
        messages.decode_revealed(
            DIGEST, messages.encode_revealed(DIGEST, {"a": (Secret.SELF_MASK, b"\xff" * 33)})
        )
    wrong = messages.encode_revealed(DIGEST, {"a": (Secret.SELF_MASK, bytes(33))}).replace(b"a\0", b"a\2", 1)
    with pytest.raises(SecureError, match="a share that is none"):
        messages.decode_revealed(DIGEST, wrong)


def test_kinds_are_not_mistaken_for_each_other() -> None:
    """Shares on their way to the server and from it have one layout, and are not the same."""
    sent = messages.encode_shares(DIGEST, {"a": bytes(messages.SEALED_BYTES)})
    with pytest.raises(SecureError, match="another kind"):
        messages.decode_delivered(DIGEST, sent)


def test_a_round_of_a_hundred_sites_is_small() -> None:
    """Without certificates: what a site receives besides the model."""
    names = secure_setting.names(100)
    keys = Keys(
        mask_key=bytes(32),
        transport_key=bytes(32),
        commitment=bytes(32),
        certificate=b"",
        signature=bytes(64),
    )
    assert len(messages.encode_roster(DIGEST, dict.fromkeys(names, keys))) == 42 + 100 * (9 + 96 + 2 + 2 + 64)
    sealed = messages.encode_shares(DIGEST, dict.fromkeys(names, bytes(messages.SEALED_BYTES)))
    assert len(sealed) == 42 + 100 * (9 + 82)
