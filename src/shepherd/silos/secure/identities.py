"""Ed25519 identities without certificates, for simulation and tests."""

from __future__ import annotations

from collections.abc import Mapping

from shepherd.errors import SecureError
from shepherd.silos.secure import primitives
from shepherd.visible import shown_line


class Ed25519Identity:
    """A signing key from a seed of 32 bytes; its certificate is the public key."""

    def __init__(self, seed: bytes) -> None:
        self._seed = seed
        self.certificate = primitives.ed25519_public(seed)

    def sign(self, message: bytes) -> bytes:
        """Sign a message (RFC 8032); 64 bytes."""
        return primitives.ed25519_sign(self._seed, message)


class Ed25519Directory:
    """The members' public keys, by name."""

    def __init__(self, keys: Mapping[str, bytes]) -> None:
        self._keys = dict(keys)

    def verify(self, member: str, certificate: bytes, message: bytes, signature: bytes) -> None:
        """Require that the key is this member's and the signature is over this message.

        Raises:
            SecureError: one of them is not.
        """
        if self._keys.get(member) != certificate:
            raise SecureError(f"the key that site {shown_line(member)} shows is not its own; ask its owner")
        if not primitives.ed25519_verifies(certificate, message, signature):
            raise SecureError(f"a signature of site {shown_line(member)} does not verify")
