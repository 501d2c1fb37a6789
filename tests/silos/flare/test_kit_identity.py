"""Who signs in a secure sum: certificates of the federation's sites, and nobody else's."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding
from tests.silos.flare import federations

from shepherd.errors import SecureError, SilosError
from shepherd.silos.flare import kits, tls
from shepherd.silos.flare.kit_identity import KitDirectory, KitIdentity

MESSAGE = b"what is signed"


def identity(kit: Path) -> KitIdentity:
    return KitIdentity(kits.read(kit))


@pytest.fixture
def directory(federation: Path) -> KitDirectory:
    return KitDirectory(kits.read(federation / "sites" / "site-1"))


def test_a_signature_is_pss_with_sha256_by_the_kits_key(federation: Path) -> None:
    """RFC 8017, section 8.1, with a salt as long as the hash; checked by the library alone."""
    mine = identity(federation / "sites" / "site-1")
    key = x509.load_pem_x509_certificate(mine.certificate).public_key()
    pss = padding.PSS(padding.MGF1(hashes.SHA256()), 32)
    key.verify(mine.sign(MESSAGE), MESSAGE, pss, hashes.SHA256())
    assert mine.sign(MESSAGE) != mine.sign(MESSAGE)  # salted


def test_a_site_of_the_federation_is_accepted(federation: Path, directory: KitDirectory) -> None:
    for name in ("site-1", "site-2"):
        theirs = identity(federation / "sites" / name)
        directory.verify(name, theirs.certificate, MESSAGE, theirs.sign(MESSAGE))


def test_the_servers_kit_verifies_sites_too(federation: Path) -> None:
    at_server = KitDirectory(kits.read(federation / "server", "server"))
    theirs = identity(federation / "sites" / "site-2")
    at_server.verify("site-2", theirs.certificate, MESSAGE, theirs.sign(MESSAGE))


def test_another_name_message_or_signature_is_refused(federation: Path, directory: KitDirectory) -> None:
    theirs = identity(federation / "sites" / "site-2")
    good = theirs.sign(MESSAGE)
    with pytest.raises(SecureError, match="shown for site-1 is not that of a site of this name"):
        directory.verify("site-1", theirs.certificate, MESSAGE, good)
    with pytest.raises(SecureError, match="a signature of site-2 does not fit"):
        directory.verify("site-2", theirs.certificate, MESSAGE + b"!", good)
    for signature in (b"", good[:-1], bytes([good[0] ^ 1]) + good[1:]):
        with pytest.raises(SecureError, match="a signature of site-2 does not fit"):
            directory.verify("site-2", theirs.certificate, MESSAGE, signature)
    for certificate in (b"", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"):
        with pytest.raises(SecureError, match="the certificate of site-2 is not of this federation"):
            directory.verify("site-2", certificate, MESSAGE, good)


def _self_signed(federation: Path, other: Path, kit: Path) -> Path:
    return federations.reissued(kit, None)


def _of_another_federation(federation: Path, other: Path, kit: Path) -> Path:
    return federations.copied(other / "sites" / "site-1", kit.parent / "other")


@pytest.mark.parametrize("make", [_self_signed, _of_another_federation])
def test_another_authority_is_refused(
    federation: Path,
    other_federation: Path,
    directory: KitDirectory,
    tmp_path: Path,
    make: Callable[..., Path],
) -> None:
    kit = federations.copied(federation / "sites" / "site-1", tmp_path / "kit")
    made = make(federation, other_federation, kit) / "startup"
    certificate = (made / "client.crt").read_bytes()
    with pytest.raises(SecureError, match="the certificate of site-1 is not of this federation"):
        directory.verify("site-1", certificate, MESSAGE, b"x" * 256)


@pytest.mark.parametrize(("begins", "ends"), [(-30, -1), (1, 30)], ids=["expired", "not valid yet"])
def test_a_certificate_out_of_its_time_is_refused(
    federation: Path, directory: KitDirectory, tmp_path: Path, begins: float, ends: float
) -> None:
    kit = federations.copied(federation / "sites" / "site-2", tmp_path / "kit")
    federations.reissued(kit, federation / "authority", begins=begins, ends=ends)
    certificate = (kit / "startup" / "client.crt").read_bytes()
    with pytest.raises(SecureError, match=r"the certificate of site-2 is valid from .* check the clocks"):
        directory.verify("site-2", certificate, MESSAGE, b"x" * 256)


def test_the_server_and_administrators_are_no_sites(federation: Path, directory: KitDirectory) -> None:
    """The server has a certificate of the same authority, and could otherwise be in its own sums."""
    for kit in ("server", "admins/ada"):
        found = kits.read(federation / kit)
        theirs = KitIdentity(found)
        name = kits._attribute(kits._certificate(found.certificate), x509.NameOID.COMMON_NAME)
        assert name
        with pytest.raises(SecureError, match="is not that of a site of this name"):
            directory.verify(name, theirs.certificate, MESSAGE, theirs.sign(MESSAGE))


def test_removed_sites_and_those_not_listed_are_refused(federation: Path, tmp_path: Path) -> None:
    theirs = identity(federation / "sites" / "site-2")
    signed = theirs.sign(MESSAGE)
    kit = federations.copied(federation / "sites" / "site-1", tmp_path / "kit")
    (kit / tls.REMOVED).write_text(json.dumps({"disabled_clients": ["site-2"]}))
    with pytest.raises(SecureError, match="site-2 was removed from the federation"):
        KitDirectory(kits.read(kit)).verify("site-2", theirs.certificate, MESSAGE, signed)
    mine = kits.read(federation / "sites" / "site-1")
    with pytest.raises(SecureError, match=r"site-2 is not in policy\.secure_with"):
        KitDirectory(mine, ["site-1", "site-3"]).verify("site-2", theirs.certificate, MESSAGE, signed)
    KitDirectory(mine, ["site-1", "site-2"]).verify("site-2", theirs.certificate, MESSAGE, signed)


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"disabled_clients": "site-2"}', '{"disabled_clients": [1]}']
)
def test_a_damaged_list_of_removed_sites_is_not_taken_for_an_empty_one(
    federation: Path, tmp_path: Path, text: str
) -> None:
    kit = federations.copied(federation / "sites" / "site-1", tmp_path / "kit")
    (kit / tls.REMOVED).write_text(text)
    with pytest.raises(SilosError, match=r"removed members .*disabled_clients\.json cannot be read; copy it"):
        KitDirectory(kits.read(kit))
