"""Who must not get in, and what must not run: each case tries so often, and says what both ends said.

Used by the tests and by `benchmarks/silos_strangers.py`. A try is let in if the server or a site did anything
for it: gave an answer, took it in, trained, or ran a line of what it brought.
"""

from __future__ import annotations

import re
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from shepherd.errors import SilosError
from shepherd.silos.flare import kits, probe
from shepherd.silos.flare.kits import Kit
from shepherd.silos.flare.session import Session, session
from shepherd.silos.site import serve as sites
from tests.silos.flare.federations import reissued
from tests.silos.relay import recording
from tests.silos.scene import Scene, copied, until


@dataclass(frozen=True, slots=True, kw_only=True)
class Tried:
    """What came of one case. The last words of each end are one line, or "" where it said nothing."""

    case: str
    tries: int
    let_in: int
    server: str
    """What the end that was tried said in its log."""
    other: str
    """What the stranger's end said."""


Attempt = Callable[[], tuple[bool, str]]
"""One try: whether it was answered, and what the stranger's end said."""


def tried(scene: Scene, case: str, tries: int, attempt: Attempt, line: str, end: str = "server") -> Tried:
    """Try so often; after each, wait for a line in the log of the end that was tried.

    Args:
        line: a regular expression; a try that leaves no such line makes `Tried.server` empty.
    """
    let_in, lines, other = 0, [], ""
    for _ in range(tries):
        seen, before = scene.seen(end), evidence(scene)
        answered, other = attempt()
        until(lambda seen=seen: matching(scene, end, seen, line), 10.0)  # type: ignore[misc]
        lines += matching(scene, end, seen, line)[:1]
        let_in += answered or evidence(scene) != before
    said = bare(lines[-1]) if len(lines) >= tries else ""
    return Tried(case=case, tries=tries, let_in=let_in, server=said, other=bare(other))


def evidence(scene: Scene) -> tuple[object, ...]:
    """What changes when somebody gets in."""
    markers = sorted(path.name for path in scene.markers.iterdir())
    return markers, [scene.granted(site) for site in scene.made.sites]


def matching(scene: Scene, end: str, seen: Mapping[str, int], line: str) -> list[str]:
    """The lines in the log of an end, since `seen`, that a regular expression finds."""
    return [each for each in scene.log(end, seen).splitlines() if re.search(line, each)]


def bare(line: str) -> str:
    """A line without its time and its logger.

    >>> bare("2026-11-22 18:47:00,776 - door - WARNING - refused a job")
    'refused a job'
    """
    return re.sub(r"^\d{4}-\S+ \S+ (?:- \S+ - [A-Z]+ - |[A-Z]+ )?", "", line.strip())


# certificates ----------------------------------------------------------------------------------------------


def no_certificate(scene: Scene, tries: int) -> Tried:
    kit = kits.read(scene.made.kit("site-2"), "site")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.load_verify_locations(kit.root)

    def attempt() -> tuple[bool, str]:
        with socket.create_connection((kit.host, kit.port), 10) as plain:
            try:
                with context.wrap_socket(plain) as secure:
                    secure.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
                    answer = secure.recv(100)
            except OSError as error:
                return False, f"TLS: {error}"
        return bool(answer), "the server closed the connection"

    return tried(scene, "no certificate", tries, attempt, r"refused a TLS connection .* no certificate")


def self_made(scene: Scene, tries: int) -> Tried:
    kit = _spoiled(scene, "self-made", None)
    line = r"refused a TLS connection .* \(self-signed certificate\)"
    return tried(scene, "an authority of one's own, a site's name", tries, _reaching(kit), line)


def expired(scene: Scene, tries: int) -> Tried:
    kit = _spoiled(scene, "expired", scene.authority)
    line = r"refused a TLS connection .* \(certificate has expired\)"
    return tried(scene, "an expired certificate", tries, _reaching(kit), line)


def another_site(scene: Scene, tries: int) -> Tried:
    """FLARE's client with site-2's kit, that says it is site-1; each connection that it makes is a try.

    The site's own supervisor runs it, as it would run a kit that was mixed up.
    """
    folder = copied(scene.made.kit("site-2"), scene.scratch / "claim")
    kit = replace(kits.read(folder, "site"), name="site-1")
    line = r"authenticated as 'site-2' but claimed endpoint 'site-1'"
    seen, before = scene.seen("server"), scene.registered("site-1")
    warned: list[str] = []
    while len(found := matching(scene, "server", seen, line)) < tries:
        warned += _kept_until_warned(kit)
    return Tried(
        case="a certificate of another site",
        tries=len(found),
        let_in=scene.registered("site-1") - before,
        server=bare(found[-1]),
        other=warned[-1] if warned else "",
    )


def _kept_until_warned(kit: Kit) -> list[str]:
    """Run FLARE's client of the kit until its supervisor has something to say of its connections."""
    said: list[str] = []
    stop = threading.Event()
    keeper = threading.Thread(target=sites.keep, args=(kit, [sites._flare(kit)], said.append, stop))
    keeper.start()
    until(lambda: any("four times" in each for each in said), 90)
    stop.set()
    keeper.join()
    return [each for each in said if "four times" in each]


def site_as_administrator(scene: Scene, tries: int) -> Tried:
    folder = copied(scene.admin("admin"), scene.scratch / "as-admin")
    for name in ("client.crt", "client.key"):
        (folder / "startup" / name).write_bytes((scene.made.kit("site-3") / "startup" / name).read_bytes())

    def attempt() -> tuple[bool, str]:
        try:
            with session(folder, 60.0) as server:
                return bool(server.connected()), ""
        except SilosError as error:
            return False, str(error)

    case = "a site's certificate as an administrator's"
    return tried(scene, case, tries, attempt, r"refused check_status to site-3")


def removed_administrator(scene: Scene, tries: int) -> Tried:
    """`shepherd silos remove-admin` while the administrator looks on; then the kit is tried again."""
    lea = scene.admin("lea")
    with session(lea, 60.0) as server:
        assert server.connected()
        removed = command("remove-admin", str(scene.made.folder), "lea", "--kit", str(scene.admin("admin")))
        until(lambda: not _looks_on(server), 10.0)
        open_still = _looks_on(server)
    line = r"(refused|cut) a TLS connection.* lea@shepherd\.local was removed"
    case = "a removed administrator, also in an open session"
    result = tried(scene, case, tries, _reaching(kits.read(lea, "admin")), line)
    return replace(result, let_in=result.let_in + open_still + (removed.returncode != 0))


def _looks_on(server: Session) -> bool:
    try:
        return bool(server.connected())
    except SilosError:
        return False


def removed_while_running(scene: Scene, tries: int) -> Tried:
    """`shepherd silos remove-site`; its own client tries again by itself, and more tries are made for it."""
    before, seen = scene.registered("site-3"), scene.seen("server")
    command("remove-site", str(scene.made.folder), "site-3", "--kit", str(scene.admin("admin")))
    line = r"(refused|cut) a TLS connection.* site-3 was removed"
    cut = until(lambda: len(matching(scene, "server", seen, line)) >= 2, 60)
    reached = _reaching(kits.read(scene.made.kit("site-3"), "site"))
    result = tried(scene, "a removed site, while it runs", tries, reached, line)
    refusal = r"refuses the certificate of site-3.*"
    log = scene.made.log("site-3")
    until(lambda: re.search(refusal, log.read_text()), 60)  # it looks every 30 s
    told = re.search(refusal, log.read_text())
    return replace(
        result,
        let_in=result.let_in + scene.registered("site-3") - before + (not cut),
        other=f"the server {told[0]}" if told else "",
    )


def removed_after_restart(scene: Scene, tries: int) -> Tried:
    """The kit of the removed site, by the command that its owner would give, at a server that began again."""
    scene.restart_server()
    before = scene.registered("site-3")
    line = r"refused a TLS connection .* site-3 was removed"
    kit = kits.read(scene.made.kit("site-3"), "site")
    result = tried(scene, "a removed site, after a restart", tries, _reaching(kit), line)
    done = command("site", str(kit.folder), "--config", str(scene.made.folder.parent / SITE_TOML))
    refused = done.returncode == 2 and "refuses the certificate of site-3" in done.stderr
    return replace(
        result,
        tries=tries + 1,
        let_in=result.let_in + scene.registered("site-3") - before + (not refused),
        other=done.stderr.strip() if refused else "",
    )


SITE_TOML = Path("sites") / "site-3" / "site.toml"


def replayed_connection(scene: Scene, tries: int) -> Tried:
    """What a site's connection was on the wire, sent once more: TLS has keys of its own for each connection,
    so the first message that proves them cannot be read, and nothing behind it is looked at.
    """
    kit = kits.read(scene.made.kit("site-2"), "site")
    with recording((kit.host, kit.port)) as relay:
        probe.reach(replace(kit, port=relay.port))
    sent = relay.sent()

    def attempt() -> tuple[bool, str]:
        with socket.create_connection((kit.host, kit.port), 10) as plain:
            plain.sendall(sent)
            answer = b""
            try:
                while part := plain.recv(4096):
                    answer += part
            except OSError:
                pass
        return b"HTTP/1.1" in answer, "the server closed the connection"

    return tried(scene, "a recorded connection, replayed", tries, attempt, r"refused a TLS connection")


def command(*words: str) -> subprocess.CompletedProcess[str]:
    """`shepherd silos WORDS ...` to its end."""
    line = [sys.executable, "-m", "shepherd", "silos", *words]
    return subprocess.run(line, capture_output=True, text=True, timeout=120, check=False)


def _spoiled(scene: Scene, name: str, authority: Path | None) -> Kit:
    """site-1's kit with another certificate; as the owner's own check would not let it pass, parsed alone."""
    folder = copied(scene.made.kit("site-1"), scene.scratch / name)
    return kits._parsed(reissued(folder, authority, begins=-30, ends=30 if authority is None else -1), "site")


def _reaching(kit: Kit) -> Attempt:
    def attempt() -> tuple[bool, str]:
        try:
            probe.reach(kit, 20.0)
        except SilosError as error:
            return False, str(error)
        return True, ""

    return attempt
