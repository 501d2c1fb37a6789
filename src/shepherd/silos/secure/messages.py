"""Messages of the protocol as bytes: fixed layouts, read strictly.

Every message starts with 40 bytes: `SecSum1`, its kind, and the session's digest. Numbers are little-endian.
Lists are sorted by name, names in UTF-8 behind one byte of length. What is cut, longer, out of order, of
another kind or of another session is a SecureError. docs/secure-aggregation.md has the tables.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from enum import IntEnum
from typing import TypeVar

from shepherd.errors import SecureError
from shepherd.silos.secure.masks import Ring
from shepherd.silos.secure.primitives import KEY_BYTES, TAG_BYTES
from shepherd.silos.secure.session import MAX_MEMBERS, require_name
from shepherd.silos.secure.shamir import SHARE_BYTES, is_share

MAGIC = b"SecSum1"
DIGEST_BYTES = 32
HEADER_BYTES = len(MAGIC) + 1 + DIGEST_BYTES
MAX_CERTIFICATE_BYTES = 16_384
MAX_SIGNATURE_BYTES = 1_024
PAIR_BYTES = 2 * SHARE_BYTES
SEALED_BYTES = PAIR_BYTES + TAG_BYTES

_Value = TypeVar("_Value")


class Kind(IntEnum):
    """What a message is."""

    KEYS = 1
    ROSTER = 2
    SHARES = 3
    DELIVERED = 4
    MASKED = 5
    SURVIVORS = 6
    AGREED = 7
    SIGNATURES = 8
    REVEALED = 9


class Secret(IntEnum):
    """Which of a member's secrets a share is of."""

    SELF_MASK = 0
    MASK_KEY = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Keys:
    """One member's part of the roster."""

    mask_key: bytes
    """X25519 public key from which the masks of pairs are derived."""
    transport_key: bytes
    """X25519 public key under which shares travel."""
    commitment: bytes
    """Hash that only the seed of this member's self-mask fits; 32 bytes."""
    certificate: bytes
    signature: bytes
    """By the member's long-term key, over the session, its name and the fields above."""


Revealed = tuple[Secret, bytes]
"""Which secret, and the share of it."""


# writing ---------------------------------------------------------------------------------------------------


def encode_keys(digest: bytes, keys: Keys) -> bytes:
    """One member's keys, as it sends them."""
    return _header(Kind.KEYS, digest) + _keys(keys)


def encode_roster(digest: bytes, roster: Mapping[str, Keys]) -> bytes:
    """The keys of all members that answered."""
    return _header(Kind.ROSTER, digest) + _table(roster, _keys)


def encode_shares(digest: bytes, sealed: Mapping[str, bytes]) -> bytes:
    """Sealed pairs of shares, by the member that can open each."""
    return _header(Kind.SHARES, digest) + _table(sealed, bytes)


def encode_delivered(digest: bytes, sealed: Mapping[str, bytes]) -> bytes:
    """Sealed pairs of shares for one member, by the member that each is from."""
    return _header(Kind.DELIVERED, digest) + _table(sealed, bytes)


def encode_masked(digest: bytes, dealers: bytes, vector: Ring) -> bytes:
    """A masked vector, with the hash of the set of dealers that it is masked for."""
    return b"".join((_header(Kind.MASKED, digest), dealers, vector.data))


def encode_survivors(digest: bytes, names: Iterable[str]) -> bytes:
    """The members in the sum."""
    return _header(Kind.SURVIVORS, digest) + _table(dict.fromkeys(names, b""), bytes)


def encode_agreed(digest: bytes, signature: bytes) -> bytes:
    """One member's signature over the survivors."""
    return _header(Kind.AGREED, digest) + _sized(signature)


def encode_signatures(digest: bytes, signatures: Mapping[str, bytes]) -> bytes:
    """The signatures over the survivors."""
    return _header(Kind.SIGNATURES, digest) + _table(signatures, _sized)


def encode_revealed(digest: bytes, shares: Mapping[str, Revealed]) -> bytes:
    """For each dealer, one share of one of its secrets."""
    return _header(Kind.REVEALED, digest) + _table(shares, lambda one: bytes([one[0]]) + one[1])


def _header(kind: Kind, digest: bytes) -> bytes:
    return MAGIC + bytes([kind]) + digest


def _sized(field: bytes) -> bytes:
    return len(field).to_bytes(2, "little") + field


def _keys(keys: Keys) -> bytes:
    signed = keys.mask_key + keys.transport_key + keys.commitment
    return signed + _sized(keys.certificate) + _sized(keys.signature)


def _table(entries: Mapping[str, _Value], field: Callable[[_Value], bytes]) -> bytes:
    parts = [len(entries).to_bytes(2, "little")]
    for name in sorted(entries):
        parts += [bytes([len(name.encode())]), name.encode(), field(entries[name])]
    return b"".join(parts)


# reading ---------------------------------------------------------------------------------------------------


def decode_keys(digest: bytes, data: bytes) -> Keys:
    """Keys of one member; their signature is not verified."""
    reader = _Reader(data, Kind.KEYS, digest)
    return reader.end(reader.keys())


def decode_roster(digest: bytes, data: bytes) -> dict[str, Keys]:
    """Keys of all members, by name."""
    reader = _Reader(data, Kind.ROSTER, digest)
    return reader.end(reader.table(reader.keys))


def decode_shares(digest: bytes, data: bytes) -> dict[str, bytes]:
    """Sealed pairs of shares, by the member that can open each."""
    reader = _Reader(data, Kind.SHARES, digest)
    return reader.end(reader.table(lambda: reader.take(SEALED_BYTES)))


def decode_delivered(digest: bytes, data: bytes) -> dict[str, bytes]:
    """Sealed pairs of shares, by the member that each is from."""
    reader = _Reader(data, Kind.DELIVERED, digest)
    return reader.end(reader.table(lambda: reader.take(SEALED_BYTES)))


def decode_masked(digest: bytes, data: bytes, vector_bytes: int) -> tuple[bytes, memoryview]:
    """The hash of the set of dealers, and the bytes of the vector (a view)."""
    reader = _Reader(data, Kind.MASKED, digest)
    dealers = reader.take(DIGEST_BYTES)
    vector = memoryview(data)[HEADER_BYTES + DIGEST_BYTES :]
    if len(vector) != vector_bytes:
        raise SecureError(f"a masked vector has {len(vector):,} bytes where {vector_bytes:,} were asked for")
    return dealers, vector


def decode_survivors(data: bytes, digest: bytes | None = None) -> tuple[str, ...]:
    """The members in the sum; of any session if no digest is given."""
    reader = _Reader(data, Kind.SURVIVORS, digest)
    return tuple(reader.end(reader.table(lambda: b"")))


def decode_agreed(digest: bytes, data: bytes) -> bytes:
    """One member's signature over the survivors."""
    reader = _Reader(data, Kind.AGREED, digest)
    return reader.end(reader.sized(MAX_SIGNATURE_BYTES))


def decode_signatures(digest: bytes, data: bytes) -> dict[str, bytes]:
    """The signatures over the survivors, by name."""
    reader = _Reader(data, Kind.SIGNATURES, digest)
    return reader.end(reader.table(lambda: reader.sized(MAX_SIGNATURE_BYTES)))


def decode_revealed(digest: bytes, data: bytes) -> dict[str, Revealed]:
    """For each dealer, which secret and the share of it."""
    reader = _Reader(data, Kind.REVEALED, digest)
    return reader.end(reader.table(reader.revealed))


class _Reader:
    """Takes a message apart from its start; every fault is a SecureError."""

    def __init__(self, data: bytes, kind: Kind, digest: bytes | None) -> None:
        self._data, self._at, self._kind = data, 0, kind
        magic, found, session = self.take(len(MAGIC)), self.take(1)[0], self.take(DIGEST_BYTES)
        if magic != MAGIC or found != kind:
            raise self.error("is of another kind or version")
        if digest is not None and session != digest:
            raise self.error("belongs to another session")

    def error(self, fault: str) -> SecureError:
        return SecureError(
            f"a message of secure aggregation ({self._kind.name.lower()}) {fault}; use one"
            " version of shepherd-fit at both ends"
        )

    def take(self, count: int) -> bytes:
        part = self._data[self._at : self._at + count]
        if len(part) != count:
            raise self.error("is cut")
        self._at += count
        return part

    def sized(self, most: int) -> bytes:
        size = int.from_bytes(self.take(2), "little")
        if size > most:
            raise self.error(f"has a field of {size} bytes, and the limit is {most}")
        return self.take(size)

    def keys(self) -> Keys:
        return Keys(
            mask_key=self.take(KEY_BYTES),
            transport_key=self.take(KEY_BYTES),
            commitment=self.take(DIGEST_BYTES),
            certificate=self.sized(MAX_CERTIFICATE_BYTES),
            signature=self.sized(MAX_SIGNATURE_BYTES),
        )

    def revealed(self) -> Revealed:
        which, share = self.take(1)[0], self.take(SHARE_BYTES)
        if which not in tuple(Secret) or not is_share(share):
            raise self.error("has a share that is none")
        return Secret(which), share

    def table(self, field: Callable[[], _Value]) -> dict[str, _Value]:
        count = int.from_bytes(self.take(2), "little")
        if count > MAX_MEMBERS:
            raise self.error(f"lists {count} sites, and the limit is {MAX_MEMBERS}")
        entries: dict[str, _Value] = {}
        last = b""
        for _ in range(count):
            name = self.take(self.take(1)[0])
            if name <= last:
                raise self.error("lists sites out of order, or one of them twice")
            entries[self.name(name)] = field()
            last = name
        return entries

    def name(self, encoded: bytes) -> str:
        try:
            name = encoded.decode()
        except UnicodeDecodeError as error:
            raise self.error("has a name that is not UTF-8") from error
        require_name(name)
        return name

    def end(self, value: _Value) -> _Value:
        if self._at != len(self._data):
            raise self.error("goes on after its end")
        return value
