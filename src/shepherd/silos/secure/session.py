"""What one attempt at one secure sum is about, and who takes part."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from dataclasses import dataclass
from typing import Protocol

from shepherd.errors import SecureError
from shepherd.visible import shown_line

VERSION = b"shepherd secure aggregation 1"
"""First part of everything that is signed, hashed or derived."""
MIN_MEMBERS = 3
MAX_MEMBERS = 1_000
MAX_CODES = 2**30
MAX_NAME_BYTES = 255
MAX_TEXT_CHARS = 1_000


def threshold(members: int) -> int:
    """Fewest members that can open a sum: floor(2n/3) + 1.

    No two sets of this many members of n are signed by disjoint honest members as long as fewer than
    2t - n, about a third of n, collude with the server (Bonawitz et al. 2017, section 6.2).

    Raises:
        SecureError: fewer than 3 members, or more than 1,000.

    >>> [threshold(n) for n in (3, 4, 10, 100)]
    [3, 3, 7, 67]
    """
    if not MIN_MEMBERS <= members <= MAX_MEMBERS:
        raise SecureError(
            f"secure aggregation needs {MIN_MEMBERS} to {MAX_MEMBERS:,} sites in a round, and {members:,} are"
            " asked; ask another number of them"
        )
    return 2 * members // 3 + 1


def packed(*parts: bytes) -> bytes:
    """Join parts so that no other parts give the same bytes: each behind its length in 4 bytes."""
    return b"".join(len(part).to_bytes(4, "little") + part for part in parts)


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """One attempt at one sum; its digest is bound into every signature, key and message.

    Raises:
        SecureError: fewer than 3 members, or a field that is out of its range.
    """

    run: str
    """Id of the run."""
    round: int
    """Rounds finished before this one."""
    attempt: str
    """32 hex digits, drawn by the server for each attempt."""
    request: str
    """Id of the request to train that the updates answer."""
    members: tuple[str, ...]
    """Sites asked, sorted by code points, each once; 3 or more."""
    length: int
    """Number of codes in each member's vector."""
    ring_bits: int
    """Sums are modulo 2 to this power; 32 or 64."""

    def __post_init__(self) -> None:
        threshold(len(self.members))
        for name in self.members:
            require_name(name)
        if list(self.members) != sorted(set(self.members)):
            raise SecureError("the members of a secure sum are not sorted or repeat a name; sort their set")
        if self.ring_bits not in (32, 64):
            raise SecureError(f"ring_bits is {self.ring_bits}; write 32 or 64")
        if not 1 <= self.length <= MAX_CODES:
            raise SecureError(f"a secure sum of {self.length} codes; give 1 to {MAX_CODES:,}")
        if not 0 <= self.round < 2**63:
            raise SecureError(f"round {self.round} of a secure sum is not in 0 to 2^63 - 1")
        if not re.fullmatch(r"[0-9a-f]{32}", self.attempt):
            raise SecureError(f"the attempt {shown_line(self.attempt)!s:.40} is not 32 hex digits")
        for text in (self.run, self.request):
            if not re.fullmatch(rf"[!-~]{{1,{MAX_TEXT_CHARS}}}", text):
                raise SecureError(
                    f"{shown_line(text)!s:.80} is no id of a run or request: give 1 to {MAX_TEXT_CHARS} ASCII"
                    " characters without spaces"
                )

    @property
    def threshold(self) -> int:
        """Fewest members that can open the sum."""
        return threshold(len(self.members))

    def digest(self) -> bytes:
        """SHA-256 of every field; 32 bytes, equal only for equal sessions."""
        fields = packed(
            VERSION,
            b"session",
            self.run.encode(),
            self.round.to_bytes(8, "little"),
            self.attempt.encode(),
            self.request.encode(),
            self.length.to_bytes(8, "little"),
            self.ring_bits.to_bytes(1, "little"),
        )
        return hashlib.sha256(fields + packed(*(name.encode() for name in self.members))).digest()


def require_name(name: str) -> None:
    """Require a name that is one sequence of bytes and looks like no other by invisible characters.

    Raises:
        SecureError: it is empty, too long, not in Unicode's normal form C, or has invisible characters.
    """
    acceptable = name and shown_line(name) == name and unicodedata.is_normalized("NFC", name)
    if not acceptable or len(name.encode()) > MAX_NAME_BYTES:
        raise SecureError(
            f"{shown_line(name)!s:.300} is no name for a site in a secure sum: give 1 to {MAX_NAME_BYTES}"
            " bytes in Unicode's form NFC without invisible characters"
        )


class Identity(Protocol):
    """Long-term signing key of this site."""

    @property
    def certificate(self) -> bytes:
        """What others need to verify its signatures."""
        ...

    def sign(self, message: bytes) -> bytes:
        """Sign a message."""
        ...


class Directory(Protocol):
    """Knows the certificate that each member must have."""

    def verify(self, member: str, certificate: bytes, message: bytes, signature: bytes) -> None:
        """Require that the certificate is this member's and the signature is over this message.

        Raises:
            SecureError: one of them is not; names the member.
        """
        ...
