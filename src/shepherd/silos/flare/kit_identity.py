"""Who signs in a secure sum: the certificate and the key of a kit, and the authority that signed all kits.

A certificate is accepted if the federation's authority issued it itself, it is valid now, it is that of a
site (not of the server or an administrator), and its common name is the member's name.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from datetime import UTC, datetime
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.x509.oid import NameOID

from shepherd.errors import SecureError, SilosError
from shepherd.silos.flare import tls
from shepherd.silos.flare.kits import Kit

_HASH = hashes.SHA256()
_PADDING = padding.PSS(mgf=padding.MGF1(_HASH), salt_length=padding.PSS.DIGEST_LENGTH)
"""RSASSA-PSS of RFC 8017, section 8.1, with SHA-256 and a salt of 32 bytes."""


class KitIdentity:
    """Signs with the private key of a kit.

    Raises:
        SilosError: the key is not an RSA key, as FLARE makes them.
    """

    def __init__(self, kit: Kit) -> None:
        key = serialization.load_pem_private_key(kit.key.read_bytes(), password=None)
        if not isinstance(key, rsa.RSAPrivateKey):
            raise SilosError(f"{kit.key} holds no RSA key; make the kit with `shepherd silos create`")
        self._key, self._certificate = key, kit.certificate.read_bytes()

    @property
    def certificate(self) -> bytes:
        """The kit's certificate in PEM."""
        return self._certificate

    def sign(self, message: bytes) -> bytes:
        """Sign a message."""
        return self._key.sign(message, _PADDING, _HASH)


class KitDirectory:
    """Verifies the certificates of a federation's sites against the authority in a kit.

    Names in `disabled_clients.json` of the kit are refused. The server's kit has that file; a site has it
    only if its owner puts it there.

    Raises:
        SilosError: that file is there and cannot be read.
    """

    def __init__(self, kit: Kit, allowed: Collection[str] = ()) -> None:
        """`allowed`: the only names that are accepted; empty for every site of the federation."""
        self._root = x509.load_pem_x509_certificate(kit.root.read_bytes())
        self._server, self._allowed = kit.identity, frozenset(allowed)
        _require_readable(kit.folder / tls.REMOVED)
        self._removed = tls.Removed(kit.folder / tls.REMOVED)

    def verify(self, member: str, certificate: bytes, message: bytes, signature: bytes) -> None:
        """Require that the certificate is this member's, and the signature is over this message.

        Raises:
            SecureError: one of them is not; names the member.
        """
        if self._allowed and member not in self._allowed:
            raise SecureError(
                f"{member} is not in policy.secure_with; add it there, or leave it out of silos.sites"
            )
        if member in self._removed:
            raise SecureError(f"{member} was removed from the federation; leave it out of silos.sites")
        try:
            found = x509.load_pem_x509_certificate(certificate)
            found.verify_directly_issued_by(self._root)
            key = found.public_key()
        except (ValueError, TypeError, InvalidSignature) as error:
            raise SecureError(
                f"the certificate of {member} is not of this federation; have its owner use the kit that"
                " `shepherd silos create` made"
            ) from error
        self._require_subject(member, found)
        if not found.not_valid_before_utc <= datetime.now(UTC) <= found.not_valid_after_utc:
            raise SecureError(
                f"the certificate of {member} is valid from {found.not_valid_before_utc:%Y-%m-%d %H:%M} to"
                f" {found.not_valid_after_utc:%Y-%m-%d %H:%M} UTC only; check the clocks, or make a new kit"
            )
        try:
            if not isinstance(key, rsa.RSAPublicKey):
                raise InvalidSignature
            key.verify(signature, message, _PADDING, _HASH)
        except InvalidSignature as error:
            raise SecureError(
                f"a signature of {member} does not fit its message; use `shepherd resume`, and look for who"
                " changed it if it happens again"
            ) from error

    def _require_subject(self, member: str, certificate: x509.Certificate) -> None:
        names = [str(each.value) for each in certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)]
        role = certificate.subject.get_attributes_for_oid(NameOID.UNSTRUCTURED_NAME)
        if names != [member] or role or member == self._server:
            raise SecureError(
                f"the certificate shown for {member} is not that of a site of this name; have its owner use"
                " its own kit"
            )


def _require_readable(removed: Path) -> None:
    """Raise SilosError unless a list of removed members, if there is one, is what FLARE writes."""
    try:
        names = json.loads(removed.read_text(encoding="utf8"))["disabled_clients"]
        damaged = not isinstance(names, list) or not all(isinstance(name, str) for name in names)
    except FileNotFoundError:
        return
    except (OSError, ValueError, KeyError, TypeError):
        damaged = True
    if damaged:
        raise SilosError(
            f"the list of removed members {removed} cannot be read; copy it from the server's kit again, or"
            " delete it"
        )
