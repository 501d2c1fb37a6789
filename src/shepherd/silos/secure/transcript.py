"""What is hashed, signed and derived, each for one purpose and for one place in one session.

`roster` is everywhere the hash of the roster's message, which holds the session's digest and every member's
name, keys and certificate: two members who saw different rosters share no key.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

from shepherd.silos.secure.messages import Keys
from shepherd.silos.secure.primitives import hkdf
from shepherd.silos.secure.session import VERSION, packed


def commitment(seed: bytes, session: bytes, name: str) -> bytes:
    """What a member publishes of the seed of its self-mask, so that no other seed can take its place."""
    return hkdf(seed, packed(VERSION, b"commitment", session, name.encode()))


def keys_statement(session: bytes, name: str, keys: Keys) -> bytes:
    """What a member signs of its keys."""
    signed = (keys.mask_key, keys.transport_key, keys.commitment)
    return packed(VERSION, b"keys", session, name.encode(), *signed)


def roster_hash(message: bytes) -> bytes:
    """Hash of the roster as it was sent; 32 bytes."""
    return hashlib.sha256(packed(VERSION, b"roster", message)).digest()


def dealers_hash(roster: bytes, names: Iterable[str]) -> bytes:
    """Hash of the set of members whose shares arrived; 32 bytes."""
    return hashlib.sha256(packed(VERSION, b"dealers", roster, *_sorted(names))).digest()


def survivors_statement(roster: bytes, dealers: bytes, names: Iterable[str]) -> bytes:
    """What a member signs of the survivors: with them, the roster and the dealers that it saw."""
    return packed(VERSION, b"survivors", roster, dealers, *_sorted(names))


def seal_key(shared: bytes, roster: bytes, sender: str, to: str) -> bytes:
    """Key that seals the shares from one member to another; each direction has its own."""
    return hkdf(shared, packed(VERSION, b"seal", roster, sender.encode(), to.encode()))


def seal_context(roster: bytes, sender: str, to: str) -> bytes:
    """Associated data of sealed shares."""
    return packed(VERSION, b"shares", roster, sender.encode(), to.encode())


def self_mask_key(seed: bytes, roster: bytes, name: str) -> bytes:
    """Key of the keystream that a member adds alone."""
    return hkdf(seed, packed(VERSION, b"self-mask", roster, name.encode()))


def pair_mask_key(shared: bytes, roster: bytes, one: str, other: str) -> bytes:
    """Key of the keystream that the first of a pair, by name, adds and the second subtracts."""
    return hkdf(shared, packed(VERSION, b"pair-mask", roster, *_sorted((one, other))))


def _sorted(names: Iterable[str]) -> list[bytes]:
    return [name.encode() for name in sorted(names)]
