"""Ed25519 identities without certificates, for simulation and tests."""

from __future__ import annotations

from collections.abc import Mapping


class Ed25519Identity:
    """A signing key from a seed of 32 bytes; its certificate is the public key."""

    def __init__(self, seed: bytes) -> None:
        raise NotImplementedError

    @property
    def certificate(self) -> bytes:
        """The public key; 32 bytes."""
        raise NotImplementedError

    def sign(self, message: bytes) -> bytes:
        """Sign a message (RFC 8032); 64 bytes."""
        raise NotImplementedError


class Ed25519Directory:
    """The members' public keys, by name."""

    def __init__(self, keys: Mapping[str, bytes]) -> None:
        raise NotImplementedError

    def verify(self, member: str, certificate: bytes, message: bytes, signature: bytes) -> None:
        """Require that the key is this member's and the signature is over this message.

        Raises:
            SecureError: one of them is not.
        """
        raise NotImplementedError
