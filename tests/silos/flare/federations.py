"""Federations for tests: a real one on a free port, and certificates that its authority never meant."""

from __future__ import annotations

import json
import shutil
import socket
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.x509.oid import NameOID

from shepherd.silos.flare import provision

DAY = timedelta(days=1)


def made(folder: Path, sites: int = 2) -> Path:
    """A federation of site-1, site-2, ... with a project_admin and a lead, on a port that was free."""
    names = [f"site-{n}" for n in range(1, sites + 1)]
    provision.create(folder, f"localhost:{free_port()}", names, ["ada", "lea:lead"])
    return folder


def copied(kit: Path, to: Path) -> Path:
    """A kit for a test to spoil."""
    shutil.copytree(kit, to)
    return to


def free_port() -> int:
    with socket.socket() as trial:
        trial.bind(("127.0.0.1", 0))
        return int(trial.getsockname()[1])


def moved(kit: Path, port: int, host: str = "localhost") -> Path:
    """The kit of a site, made to lead to another address."""
    file = kit / "startup" / "fed_client.json"
    table = json.loads(file.read_text())
    table["servers"][0]["service"]["target"] = f"{host}:{port}"
    file.write_text(json.dumps(table))
    return kit


def reissued(kit: Path, authority: Path | None, *, begins: float = -1, ends: float = 30) -> Path:
    """Put another certificate of the same name into a kit.

    Args:
        kit: of a site.
        authority: the folder of the one that signs; None lets the kit sign for itself.
        begins: days from now at which it begins to be valid.
        ends: days from now at which it ends.
    """
    startup = kit / "startup"
    name = x509.load_pem_x509_certificate((startup / "client.crt").read_bytes()).subject
    key = rsa.generate_private_key(65537, 2048)
    signer, issuer = (key, name) if authority is None else _signer(authority)
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder(issuer, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now + begins * DAY)
        .not_valid_after(now + ends * DAY)
        .add_extension(x509.BasicConstraints(ca=authority is None, path_length=None), critical=True)
        .sign(signer, hashes.SHA256())
    )
    (startup / "client.crt").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    (startup / "client.key").write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.TraditionalOpenSSL,
            serialization.NoEncryption(),
        )
    )
    return kit


def common_name(certificate: Path) -> str:
    found = x509.load_pem_x509_certificate(certificate.read_bytes())
    return str(found.subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value)


def _signer(authority: Path) -> tuple[rsa.RSAPrivateKey, x509.Name]:
    state = json.loads((authority / "state.json").read_text())
    key = serialization.load_pem_private_key(state["root_pri_key"].encode(), password=None)
    assert isinstance(key, rsa.RSAPrivateKey)
    return key, x509.load_pem_x509_certificate(state["root_cert"].encode()).subject
