"""Make a federation: an authority, and a kit for the server, each site and each administrator.

FOLDER/
  federation.json   names and addresses; nothing secret
  server/           the kit of the server
  sites/NAME/       the kit of a site
  admins/NAME/      the kit of an administrator
  authority/        the key that signs kits; its holder can admit anyone

Certificates are made by FLARE's own `nvflare provision`. Its start scripts are removed from the kits, since
they would run FLARE without our supervision and safe settings.
"""

from __future__ import annotations

import json
import re
import secrets
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, ip_address
from pathlib import Path
from typing import Any, Literal

from shepherd import visible
from shepherd.errors import SilosError
from shepherd.io.atomic import disk_errors, write_atomic
from shepherd.silos.flare import known_sites
from shepherd.silos.flare.hardening import ROLES, Kind, harden, protect
from shepherd.version import install

FEDERATION, AUTHORITY = "federation.json", "authority"
PORT = 8002
ROOT_DAYS = 3600
"""Validity of the authority in days; FLARE makes the kits' certificates valid for 360."""
_MAX_NAME_CHARS = (
    40  # characters of a name; a certificate takes 64, and a run folder is named after it as well
)
_ORG = "shepherd"
_DOMAIN = "shepherd.local"  # FLARE requires an administrator's name to look like an e-mail address
_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9_-]*[A-Za-z0-9])?")
_ADMIN_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._+-]*[A-Za-z0-9])?(?:@[A-Za-z0-9.-]+\.[A-Za-z]{2,})?")
_HOST = re.compile(r"(?:[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?\.)*[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?")
_IMPL = "nvflare.lighter.impl."
_RESERVED = frozenset({"server", "client", "admin", "all", "relay"})  # names with a meaning in FLARE

State = Literal["member", "removed"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Federation:
    """Content of `federation.json`."""

    name: str
    host: str
    port: int
    sites: Mapping[str, State]
    admins: Mapping[str, str]  # the full name -> the role, or "removed"


@dataclass(frozen=True, slots=True)
class Created:
    """A new federation or kit: its folder, and sentences on what to do with it."""

    folder: Path
    sentences: tuple[str, ...]


def create(
    folder: str | Path, server: str, sites: Sequence[str], admins: Sequence[str] = ("admin",)
) -> Created:
    """Make a federation in a new or empty folder.

    Args:
        folder: where to make it; everything in it becomes accessible to its owner only.
        server: "host[:port]" by which the sites and administrators reach the server.
        sites: their names: letters, digits, - and _, at most 40.
        admins: "name[:role]", by default with the role project_admin, who may also remove sites and
            administrators; a lead may submit runs and stop its own; org_admin and member may look.

    Raises:
        SilosError: the folder is taken, a name or address is not valid, or FLARE is not installed.
    """
    folder = Path(folder)
    federation = _federation(server, sites, admins)
    _require_free(folder)
    with _staged(folder) as staging:
        _provision(staging, federation, federation.sites, federation.admins, with_server=True)
        write(staging, federation)
        known_sites.add(staging / "server", federation.sites)
        protect(staging)
    return Created(folder, _instructions(folder, federation))


def add_site(folder: str | Path, name: str) -> Created:
    """Make the kit of one more site, with the authority of the federation in `folder`.

    Raises:
        SilosError: there is no federation or no authority, or the name is not valid or taken.
    """
    folder = Path(folder)
    federation = read(folder)
    _require_authority(folder)
    if name in federation.sites:
        state = "was removed from" if federation.sites[name] == "removed" else "is already a site of"
        raise SilosError(f"{name} {state} the federation in {folder}; choose another name")
    wider = replace(federation, sites={**federation.sites, name: "member"})
    _require_names(wider.host, wider.sites, wider.admins)
    with _staged(folder / "sites" / name) as staging:
        _provision(staging, federation, [name], [], authority=folder / AUTHORITY)
        kit = staging / "sites" / name
        for part in list(kit.iterdir()):
            shutil.move(part, staging / part.name)
        shutil.rmtree(staging / "sites")
        protect(staging)
    write(folder, wider)
    if (folder / "server").is_dir():  # a server elsewhere adds the site once it connects
        known_sites.add(folder / "server", [name])
    return Created(folder / "sites" / name, (_site_sentence(folder, name),))


def remove_site(folder: str | Path, name: str) -> Federation:
    """Record a site as removed and mark its kit; `session.disable` removes it from a running server.

    Raises:
        SilosError: there is no such federation or site.
    """
    folder = Path(folder)
    federation = read(folder)
    if name not in federation.sites:
        known = ", ".join(federation.sites) or "none"
        raise SilosError(f"{name} is not a site of the federation in {folder}; its sites are {known}")
    narrower = replace(federation, sites={**federation.sites, name: "removed"})
    write(folder, narrower)
    kit = folder / "sites" / name
    if kit.is_dir():
        write_atomic(kit / "REMOVED", f"{name} was removed from the federation; this kit opens nothing.\n")
    return narrower


def remove_admin(folder: str | Path, name: str) -> tuple[Federation, str]:
    """Record an administrator as removed and mark the kit, as `remove_site` does.

    Returns:
        The federation, and the administrator's full name.

    Raises:
        SilosError: there is no such federation or administrator.
    """
    folder = Path(folder)
    federation = read(folder)
    full = full_name(federation, folder, name)
    narrower = replace(federation, admins={**federation.admins, full: "removed"})
    write(folder, narrower)
    kit = folder / "admins" / kit_name(full)
    if kit.is_dir():
        write_atomic(kit / "REMOVED", f"{full} was removed from the federation; this kit opens nothing.\n")
    return narrower, full


def full_name(federation: Federation, folder: Path, name: str) -> str:
    """Full name of an administrator, as in the certificate, from it or from the name of the kit.

    Raises:
        SilosError: there is no such administrator.
    """
    full = name if "@" in name else f"{name}@{_DOMAIN}"
    if full not in federation.admins:
        known = ", ".join(map(kit_name, federation.admins)) or "none"
        raise SilosError(
            f"{name} is not an administrator of the federation in {folder}; its administrators are {known}"
        )
    return full


def read(folder: str | Path) -> Federation:
    """Read the federation that was made in `folder`.

    Raises:
        SilosError: there is no federation, or its file is damaged.
    """
    path = Path(folder) / FEDERATION
    try:
        found = json.loads(path.read_text(encoding="utf8"))
        return Federation(
            name=found["name"],
            host=found["host"],
            port=int(found["port"]),
            sites=dict(found["sites"]),
            admins=dict(found["admins"]),
        )
    except FileNotFoundError:
        raise SilosError(
            f"{folder} has no federation ({FEDERATION} is missing); name the folder that "
            "`shepherd silos create` made"
        ) from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SilosError(f"{path} cannot be read ({error}); restore it from a copy") from error


def write(folder: Path, federation: Federation) -> None:
    """Write `federation.json`."""
    table = {
        "name": federation.name,
        "host": federation.host,
        "port": federation.port,
        "sites": dict(federation.sites),
        "admins": dict(federation.admins),
    }
    write_atomic(folder / FEDERATION, json.dumps(table, indent=2) + "\n")


def holds_federation(folder: str | Path) -> bool:
    """Whether `create` made this folder.

    Raises:
        FolderError: this user may not read the folder.
    """
    with disk_errors(Path(folder)):
        return (Path(folder) / FEDERATION).is_file()


def kit_name(admin: str) -> str:
    """Name of an administrator's folder below `admins/`, from the full name.

    >>> kit_name("ada@shepherd.local"), kit_name("ada@example.org")
    ('ada', 'ada@example.org')
    """
    return admin.removesuffix("@" + _DOMAIN)


def _federation(server: str, sites: Sequence[str], admins: Sequence[str]) -> Federation:
    host, port = _address(server)
    roles = [_role(admin) for admin in admins]
    _require_names(host, sites, [name for name, _ in roles])
    if not sites:
        raise SilosError("a federation needs at least one site; name it with --site")
    if not any(role in ("project_admin", "lead") for _, role in roles):
        raise SilosError("no administrator could submit a run; give one the role project_admin or lead")
    return Federation(
        name=f"shepherd-{secrets.token_hex(4)}",  # two federations are never taken for each other
        host=host,
        port=port,
        sites=dict.fromkeys(sites, "member"),
        admins=dict(roles),
    )


def _address(server: str) -> tuple[str, int]:
    """The host and port of "HOST[:PORT]".

    >>> _address("fl.example.org:9000"), _address("10.0.0.5")
    (('fl.example.org', 9000), ('10.0.0.5', 8002))
    """
    host, colon, port = server.partition(":")
    if why := _host_fault(server) or _host_fault(host):
        raise SilosError(f'"{visible.shown_line(server)}" is not a valid address of a server: {why}')
    if colon and not (port.isdecimal() and port.isascii() and 0 < int(port) < 65536):
        raise SilosError(f'the port of "{server}" is not a number from 1 to 65535; give HOST:PORT')
    return host, int(port) if colon else PORT


def _host_fault(words: str) -> str:
    """Why a server of FLARE cannot have this name, and what to use instead; "" if it can."""
    named = "give the server a name in DNS or in /etc/hosts of every machine, and use that"
    if _is_ipv6(words):
        return f"it is an IPv6 address, and FLARE listens on IPv4 only; {named}, or its IPv4 address"
    if "://" in words or "/" in words:
        return "give only HOST or HOST:PORT, without http:// and without a path"
    if words.partition(":")[0] != words:  # with a port
        return ""
    if not words.isascii():
        return f"a certificate takes ASCII letters only; give HOST as DNS writes it{_in_ascii(words)}"
    if "_" in words:
        return f"a host name may not have an underscore; {named}, such as {words.replace('_', '-')}"
    if re.fullmatch(r"[0-9.]+", words) and not _is_ipv4(words):
        return "an IPv4 address has four numbers from 0 to 255; give HOST or HOST:PORT"
    if words in ("0.0.0.0", "255.255.255.255"):
        return "sites cannot connect to it; give the HOST or HOST:PORT at which they reach the server"
    if words.endswith("."):
        return "give HOST without the dot at its end"
    return "" if _HOST.fullmatch(words) and len(words) <= 64 else "give HOST or HOST:PORT"


def _is_ipv6(words: str) -> bool:
    """Whether the text is an IPv6 address, with or without brackets, port or zone."""
    inside = re.fullmatch(r"\[(.*)\](?::.*)?", words)
    if inside is None and words.count(":") < 2:
        return False
    try:
        ip_address((inside[1] if inside else words).partition("%")[0])
    except ValueError:
        return inside is not None
    return True


def _is_ipv4(words: str) -> bool:
    try:
        return isinstance(ip_address(words), IPv4Address)
    except ValueError:
        return False


def _in_ascii(host: str) -> str:
    try:
        return f", {host.encode('idna').decode()}"
    except UnicodeError:
        return ""


def _role(admin: str) -> tuple[str, str]:
    name, _, role = admin.partition(":")
    role = role or "project_admin"
    if role not in ROLES:
        raise SilosError(f"{role} is not a role of an administrator; choose one of {', '.join(ROLES)}")
    return name if "@" in name else f"{name}@{_DOMAIN}", role


def _require_names(host: str, sites: Iterable[str], admins: Iterable[str]) -> None:
    seen: set[str] = set()
    for name, form in [*((s, _NAME) for s in sites), *((kit_name(a), _ADMIN_NAME) for a in admins)]:
        if not form.fullmatch(name) or len(name) > _MAX_NAME_CHARS:
            raise SilosError(
                f'"{name}" is not a valid name; use letters, digits, - and _, at most {_MAX_NAME_CHARS}'
                " of them"
            )
        if name.lower() in _RESERVED and form is _NAME:
            raise SilosError(f'"{name}" has a special meaning in FLARE; choose another name')
        if (
            name.lower() == host.lower() and form is _NAME
        ):  # its certificate could be mistaken for the server's
            raise SilosError(f'"{name}" is the name of the server; choose another name')
        if (form.pattern + name.lower()) in seen:  # many file systems ignore case
            raise SilosError(f'"{name}" is named twice; give each its own name')
        seen.add(form.pattern + name.lower())


def _require_free(folder: Path) -> None:
    if holds_federation(folder):
        raise SilosError(
            f"{folder} already has a federation; add to it with `shepherd silos add-site {folder} NAME`, "
            "or choose a new folder"
        )
    with disk_errors(folder):
        taken = folder.exists() and (not folder.is_dir() or any(folder.iterdir()))
    if taken:
        raise SilosError(f"{folder} is not an empty folder; choose a new one")


def _require_authority(folder: Path) -> None:
    if not (folder / AUTHORITY / "state.json").is_file():
        raise SilosError(
            f"{folder / AUTHORITY} does not exist, and only it can sign a kit; "
            "restore it from where it is kept, then try again"
        )


@contextmanager
def _staged(folder: Path) -> Iterator[Path]:
    """A temporary folder that is renamed to `folder` on success and removed on failure."""
    with disk_errors(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
        try:
            yield staging
            staging.rename(folder)  # onto nothing, or onto an empty folder
        except BaseException:
            shutil.rmtree(staging, ignore_errors=True)
            raise


def _provision(
    into: Path,
    federation: Federation,
    sites: Iterable[str],
    admins: Iterable[str],
    *,
    with_server: bool = False,
    authority: Path | None = None,
) -> None:
    """Have FLARE make kits, and move them into our layout; the server's only if `with_server`."""
    with tempfile.TemporaryDirectory(prefix=".provision-", dir=into) as work:
        project = Path(work) / "project.yml"
        project.write_text(json.dumps(_project(federation, sites, admins), indent=2))  # JSON is YAML
        state = Path(work) / federation.name / "state" / "cert.json"
        if authority:
            state.parent.mkdir(parents=True)
            shutil.copy(authority / "state.json", state)
        _run(project)
        made = state.parent.parent / "prod_00"
        if with_server:
            _adopt_kit(made / federation.host, into / "server", "server")
            _keep_authority(state, into / AUTHORITY)
        for site in sites:
            _adopt_kit(made / site, into / "sites" / site, "site")
        for admin in admins:
            _adopt_kit(made / admin, into / "admins" / kit_name(admin), "admin")


def _keep_authority(state: Path, authority: Path) -> None:
    """Keep the authority's own key only, without the keys of kits."""
    authority.mkdir()
    kept = {key: value for key, value in json.loads(state.read_text()).items() if key.startswith("root_")}
    write_atomic(authority / "state.json", json.dumps(kept) + "\n")


def _adopt_kit(made: Path, kit: Path, kind: Kind) -> None:
    for script in [*made.rglob("*.sh"), *made.rglob("*.ipynb"), *made.rglob("readme.txt")]:
        script.unlink()
    kit.parent.mkdir(exist_ok=True)
    shutil.move(made, kit)
    harden(kit, kind)
    write_atomic(kit / "README.txt", _READ_ME[kind])


def _run(project: Path) -> None:
    command = ["provision", "-p", project.name, "-w", ".", "--force"]
    done = subprocess.run(
        [sys.executable, "-m", "nvflare.cli", *command],
        cwd=project.parent,
        capture_output=True,
        text=True,
        check=False,
    )
    if "No module named" in done.stderr:
        raise SilosError(f"NVIDIA FLARE is not installed; install it with: {install('silos')}")
    if done.returncode:
        said = " ".join((done.stderr or done.stdout).split())[-300:]
        raise SilosError(f"FLARE could not make the kits: {said}")


def _project(federation: Federation, sites: Iterable[str], admins: Iterable[str]) -> dict[str, Any]:
    server = {"name": federation.host, "type": "server", "org": _ORG, "fed_learn_port": federation.port}
    people = [{"name": a, "type": "admin", "org": _ORG, "role": federation.admins[a]} for a in admins]
    places = [{"name": site, "type": "client", "org": _ORG} for site in sites]
    return {
        "api_version": 3,
        "name": federation.name,
        "description": "shepherd",
        "participants": [server, *places, *people],
        "builders": [
            {"path": _IMPL + "workspace.WorkspaceBuilder"},
            {"path": _IMPL + "static_file.StaticFileBuilder", "args": {"config_folder": "config"}},
            {"path": _IMPL + "cert.CertBuilder", "args": {"root_valid_days": ROOT_DAYS}},
            {"path": _IMPL + "signature.SignatureBuilder"},
        ],
    }


def _instructions(folder: Path, federation: Federation) -> tuple[str, ...]:
    address = f"{federation.host}:{federation.port}"
    server = (
        f"{folder / 'server'} goes to {federation.host}, whose port {federation.port} the sites must reach; "
        f"start it there with: shepherd silos server {folder / 'server'}"
    )
    people = [
        f"{folder / 'admins' / kit_name(name)} is for {name} ({role.replace('_', ' ')}), who gives it as "
        "ADMIN_KIT in: shepherd run RUN.toml --silos ADMIN_KIT"
        for name, role in federation.admins.items()
    ]
    return (
        f"made a federation for {address} in {folder}",
        server,
        *(_site_sentence(folder, site) for site in federation.sites),
        *people,
        "each kit holds a private key: send the whole kit to its owner in a way that nobody else can read "
        "(scp, an encrypted archive or disk), and delete your copy",
        f"{folder / AUTHORITY} signs kits: keep it offline and give it to nobody; "
        "only add-site needs it again",
    )


def _site_sentence(folder: Path, site: str) -> str:
    kit = folder / "sites" / site
    return f"{kit} is for {site} only, which starts it with: shepherd silos site {site} --config site.toml"


_READ_ME: dict[Kind, str] = {
    "server": "The kit of the server of a Shepherd federation. It holds a private key: keep it secret.\n"
    "Start it with: shepherd silos server THIS_FOLDER\n",
    "site": "The kit of one site of a Shepherd federation. It holds a private key: keep it secret, and run\n"
    "it on one machine only, with: shepherd silos site THIS_FOLDER --config site.toml\n"
    "local/ holds what this site permits; it is yours, and nobody at the server can change it.\n",
    "admin": "The kit of an administrator of a Shepherd federation. It holds a private key: keep it secret.\n"
    "Use it with: shepherd run RUN.toml --silos THIS_FOLDER\n",
}
