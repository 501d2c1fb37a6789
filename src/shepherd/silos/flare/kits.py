"""Read and check a kit: whom it is for, which server it leads to, and whether its certificate is valid."""

from __future__ import annotations

import json
import os
import shlex
import stat
import sys
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.x509.oid import NameOID

from shepherd.errors import SilosError
from shepherd.silos.flare.hardening import Kind

ROOT = "rootCA.pem"
_FILES: dict[Kind, str] = {"server": "fed_server.json", "site": "fed_client.json", "admin": "fed_admin.json"}
_WHOSE: dict[Kind, str] = {"server": "the server", "site": "a site", "admin": "an administrator"}
_GET_NEW_KIT = "ask the person who made the federation for the kit again"


@dataclass(frozen=True, slots=True, kw_only=True)
class Kit:
    """A kit as read from its folder; every path is absolute."""

    folder: Path
    kind: Kind
    name: str  # of the site or administrator; for a server, its host
    federation: str  # FLARE's project name, which no other federation has
    host: str  # where the server is reached
    port: int
    identity: str  # the name in the server's certificate
    role: str | None  # of an administrator
    not_before: datetime  # UTC
    not_after: datetime  # UTC
    authority: str  # SHA-256 of the authority's certificate, in hex

    @property
    def startup(self) -> Path:
        """The folder of certificates, key and addresses."""
        return self.folder / "startup"

    @property
    def certificate(self) -> Path:
        return self.startup / ("server.crt" if self.kind == "server" else "client.crt")

    @property
    def key(self) -> Path:
        return self.startup / ("server.key" if self.kind == "server" else "client.key")

    @property
    def root(self) -> Path:
        """The certificate of the authority that signed all kits of the federation."""
        return self.startup / ROOT

    @property
    def home(self) -> Path:
        """Folder of Shepherd's own files in the kit."""
        return self.folder / "shepherd"


def read(folder: str | Path, kind: Kind | None = None, *, now: datetime | None = None) -> Kit:
    """Read and check a kit.

    Args:
        folder: the kit, or its `startup/`.
        kind: what it must be for; None takes any.
        now: the time at which its certificate must hold (UTC); the clock of this machine.

    Raises:
        SilosError: the folder is no kit or one of another kind; it is incomplete, mixed up from two kits or
            readable by others; or its certificate is not valid at `now`.
    """
    folder = Path(folder).absolute()
    folder = folder.parent if folder.name == "startup" else folder
    try:
        return _read(folder, kind, now or datetime.now(UTC))
    except PermissionError as error:
        raise SilosError(
            f"the kit in {folder} cannot be read ({error.strerror}: {error.filename}); run this as the"
            " user who"
            " owns it"
        ) from error


def _read(folder: Path, kind: Kind | None, now: datetime) -> Kit:
    found = _kind(folder, kind)
    try:
        kit = _parsed(folder, found)
    except PermissionError:
        raise
    except (OSError, ValueError, KeyError, IndexError, TypeError) as error:
        raise SilosError(f"the kit in {folder} is damaged ({error}); {_GET_NEW_KIT}") from error
    _require_private(kit)
    _require_together(kit)
    _require_in_time(kit, now)
    return kit


def common_name(certificate: Any) -> str | None:
    """The common name in a certificate as `ssl` returns it, or None."""
    subject = (certificate or {}).get("subject", ())
    return next((value for part in subject for key, value in part if key == "commonName"), None)


def require_plain_path(kit: Kit) -> None:
    """Require that FLARE can start processes from the kit: it splits their command lines at spaces.

    Raises:
        SilosError: the path of the kit, or of this Python, would be split.
    """
    for path in (str(kit.folder), sys.executable):
        if shlex.split(path) != [path]:
            raise SilosError(
                f"FLARE cannot run from {path}, which has spaces, quotes or backslashes; move it to"
                " another path"
            )


def _kind(folder: Path, expected: Kind | None) -> Kind:
    kinds = [kind for kind, file in _FILES.items() if (folder / "startup" / file).is_file()]
    if not kinds:
        raise SilosError(
            f"{folder} is not a kit (startup/{_FILES[expected or 'site']} is missing); name the folder that "
            "`shepherd silos create` made for you"
        )
    if expected and expected != kinds[0]:
        raise SilosError(
            f"{folder} is a kit of {_WHOSE[kinds[0]]}, and this needs a kit of {_WHOSE[expected]}; name"
            " that one"
        )
    return kinds[0]


def _parsed(folder: Path, kind: Kind) -> Kit:
    startup = folder / "startup"
    table = json.loads((startup / _FILES[kind]).read_text(encoding="utf8"))
    certificate = _certificate(startup / ("server.crt" if kind == "server" else "client.crt"))
    federation, target, identity = _server(table, kind)
    host, _, port = target.rpartition(":")
    if ":" in host:  # edited by hand: `create` refuses such an address
        raise SilosError(
            f"the kit in {folder} leads to the IPv6 address {host}, which FLARE cannot use; write a name or "
            f"an IPv4 address into {startup / _FILES[kind]}"
        )
    return Kit(
        folder=folder,
        kind=kind,
        name=_attribute(certificate, NameOID.COMMON_NAME) or "",
        federation=federation,
        host=host,
        port=int(port),
        identity=identity,
        role=_attribute(certificate, NameOID.UNSTRUCTURED_NAME),
        not_before=certificate.not_valid_before_utc,
        not_after=certificate.not_valid_after_utc,
        authority=_certificate(startup / ROOT).fingerprint(hashes.SHA256()).hex(),
    )


def _server(table: dict[str, Any], kind: Kind) -> tuple[str, str, str]:
    """The federation's name, the server's HOST:PORT, and the name in the server's certificate."""
    if kind == "admin":
        admin = table["admin"]
        return admin["project_name"], f"{admin['host']}:{admin['port']}", admin["server_identity"]
    server = table["servers"][0]
    identity = server["admin_server"] if kind == "server" else server["identity"]
    return server["name"], server["service"]["target"], identity


def _require_private(kit: Kit) -> None:
    if os.name == "posix" and stat.S_IMODE(kit.key.stat().st_mode) & 0o077:
        raise SilosError(
            f"other users of this machine can read {kit.key}; forbid it with: chmod -R go= {kit.folder}"
        )


def _require_together(kit: Kit) -> None:
    """Require that the key fits the certificate, and that the authority has signed the certificate."""
    certificate, root = _certificate(kit.certificate), _certificate(kit.root)
    try:
        key = serialization.load_pem_private_key(kit.key.read_bytes(), password=None)
        same = key.public_key() == certificate.public_key()
        certificate.verify_directly_issued_by(root)
    except (ValueError, TypeError, InvalidSignature):
        same = False
    if not same:
        raise SilosError(
            f"the key, the certificate and {ROOT} in {kit.startup} do not belong to one kit;"
            f" {_GET_NEW_KIT}, whole"
        )


def _require_in_time(kit: Kit, now: datetime) -> None:
    clock = f"this machine's clock says {now:%Y-%m-%d %H:%M:%S} UTC"
    if now < kit.not_before:
        raise SilosError(
            f"the certificate in {kit.folder} is not valid before {kit.not_before:%Y-%m-%d %H:%M:%S} UTC, "
            f"and {clock}; set the clock, or wait"
        )
    root = _certificate(kit.root)
    if not root.not_valid_before_utc <= now <= root.not_valid_after_utc:
        raise SilosError(
            f"the certificate of the authority, {kit.root}, is valid from "
            f"{root.not_valid_before_utc:%Y-%m-%d %H:%M:%S} to {root.not_valid_after_utc:%Y-%m-%d %H:%M:%S} "
            f"UTC, and {clock}; set the clock, or ask for a new federation"
        )
    if now > kit.not_after:
        raise SilosError(
            f"the certificate in {kit.folder} expired on {kit.not_after:%Y-%m-%d %H:%M:%S} UTC, and {clock}; "
            "ask the person who made the federation for a new kit, or set the clock"
        )


def _certificate(path: Path) -> x509.Certificate:
    return x509.load_pem_x509_certificate(path.read_bytes())


def _attribute(certificate: x509.Certificate, oid: x509.ObjectIdentifier) -> str | None:
    found = certificate.subject.get_attributes_for_oid(oid)
    return str(found[0].value) if found else None
