"""The watch at the server's door, with real TLS over asyncio, as FLARE has it."""

from __future__ import annotations

import asyncio
import inspect
import json
import logging
import socket
import ssl
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

pytest.importorskip("nvflare")

from nvflare.fuel.f3.drivers import net_utils
from tests.silos.flare import federations, tls_servers

from shepherd.silos.flare import known_sites
from shepherd.silos.flare import tls as module


@pytest.fixture
def watched(federation: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Path, int]]:
    """A server's kit whose list of removed sites a test may write, and the port that it listens at."""
    monkeypatch.setattr(ssl.SSLContext, "sslobject_class", ssl.SSLObject)
    monkeypatch.setattr(module, "REMOVED_CHECK_S", 0.05)
    kit = federations.copied(federation / "server", tmp_path / "server")
    module.watch(kit)
    with tls_servers.opened(kit) as door:
        yield kit, door.port


@contextmanager
def connected(port: int, kit: Path | None) -> Iterator[ssl.SSLSocket]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    if kit:
        context.load_cert_chain(kit / "startup" / "client.crt", kit / "startup" / "client.key")
    plain = socket.create_connection(("127.0.0.1", port), timeout=5)
    with plain, context.wrap_socket(plain) as secure:
        yield secure


def gets_in(port: int, kit: Path | None) -> bool:
    try:
        with connected(port, kit) as secure:
            return answered(secure)
    except OSError:
        return False


def answered(secure: ssl.SSLSocket) -> bool:
    try:
        secure.sendall(b"hello\n")
        return secure.recv(4096).startswith(b"HTTP")
    except OSError:
        return False


Refused = Callable[[], list[str]]


@pytest.fixture
def refusals(caplog: pytest.LogCaptureFixture) -> Refused:
    caplog.set_level(logging.WARNING, logger="shepherd.door")

    def lines() -> list[str]:
        ends = time.monotonic() + 3
        while not caplog.messages and time.monotonic() < ends:
            time.sleep(0.02)
        return caplog.messages

    return lines


def test_a_member_gets_in_without_a_word(
    watched: tuple[Path, int], federation: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert gets_in(watched[1], federation / "sites" / "site-1")
    assert not [r for r in caplog.records if r.name == "shepherd.door"]


def test_no_certificate(watched: tuple[Path, int], refusals: Refused) -> None:
    assert not gets_in(watched[1], None)
    (line,) = refusals()
    assert line.startswith("refused a TLS connection from 127.0.0.1:")
    assert line.endswith("it showed no certificate")


@pytest.mark.parametrize(
    ("signed", "begins", "ends", "why"),
    [
        (False, -1, 30, "self-signed|self signed"),
        (True, -2, -1, "expired"),
        (True, 1, 2, "not yet valid"),
    ],
)
def test_a_certificate_that_does_not_hold(
    watched: tuple[Path, int],
    federation: Path,
    tmp_path: Path,
    refusals: Refused,
    signed: bool,
    begins: float,
    ends: float,
    why: str,
) -> None:
    kit = federations.copied(federation / "sites" / "site-1", tmp_path / "kit")
    federations.reissued(kit, federation / "authority" if signed else None, begins=begins, ends=ends)
    assert not gets_in(watched[1], kit)
    (line,) = refusals()
    assert any(word in line for word in why.split("|"))
    assert "127.0.0.1:" in line


def test_a_genuine_certificate_of_another_federation(
    watched: tuple[Path, int], other_federation: Path, refusals: Refused
) -> None:
    assert not gets_in(watched[1], other_federation / "sites" / "site-1")
    assert "its certificate is not valid" in refusals()[0]


def test_what_speaks_no_tls(watched: tuple[Path, int], refusals: Refused) -> None:
    with socket.create_connection(("127.0.0.1", watched[1]), timeout=5) as plain:
        plain.sendall(b"GET / HTTP/1.1\r\n\r\n")
        assert b"404" not in plain.recv(100)
    assert "does not speak TLS" in refusals()[0]


def remove(kit: Path, *sites: str) -> None:
    (kit / module.REMOVED).write_text(json.dumps({"disabled_clients": list(sites)}))


def test_a_removed_site_is_cut_kept_out_and_let_back(
    watched: tuple[Path, int], federation: Path, refusals: Refused
) -> None:
    kit, port = watched
    sites = [federation / "sites" / name for name in ("site-1", "site-2")]
    with connected(port, sites[0]) as removed, connected(port, sites[1]) as other:
        assert answered(removed)
        assert answered(other)
        remove(kit, "site-1")
        time.sleep(0.1)
        assert not answered(removed)
        assert answered(other)
    assert not gets_in(port, sites[0])
    assert [line.split(": ")[-1] for line in refusals()] == ["site-1 was removed"] * 2
    remove(kit)
    time.sleep(0.1)
    assert gets_in(port, sites[0])


@pytest.mark.parametrize("text", ["", "{", "[]", '{"disabled_clients": null}'])
def test_a_damaged_list_removes_nobody(tmp_path: Path, text: str) -> None:
    (tmp_path / "list.json").write_text(text)
    assert "site-1" not in module.Removed(tmp_path / "list.json")
    assert "site-1" not in module.Removed(tmp_path / "none.json")


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux bounds how long a connection is silent")
def test_both_ends_give_up_a_connection_that_is_silent(
    watched: tuple[Path, int], federation: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bounds = []
    set_option = socket.socket.setsockopt
    monkeypatch.setattr(
        "asyncio.trsock.TransportSocket.setsockopt",
        lambda self, *option: (bounds.append(option), set_option(self._sock, *option)),
    )
    assert gets_in(watched[1], federation / "sites" / "site-1")
    assert (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 15000) in bounds


def test_a_removed_administrator_is_cut_in_an_open_session_and_kept_out(
    watched: tuple[Path, int], federation: Path, refusals: Refused
) -> None:
    kit, port = watched
    ada, lea = (federation / "admins" / name for name in ("ada", "lea"))
    with connected(port, lea) as removed, connected(port, ada) as other:
        assert answered(removed)
        assert answered(other)
        remove(kit, "lea@shepherd.local")
        time.sleep(0.1)
        assert not answered(removed)
        assert answered(other)
    assert not gets_in(port, lea)
    assert gets_in(port, ada)
    assert [line.split(": ")[-1] for line in refusals()] == ["lea@shepherd.local was removed"] * 2


def test_the_sites_that_come_are_noted_and_nobody_else(watched: tuple[Path, int], federation: Path) -> None:
    kit, port = watched
    (kit / known_sites.FILE).write_text("[]")
    module.watch(kit)
    for who in ("sites/site-2", "admins/ada", "sites/site-1", "sites/site-2"):
        assert gets_in(port, federation / who)
    assert gets_in(port, None) is False
    assert known_sites.read(kit) == {"site-1", "site-2"}


def reached(kit: Path, port: int) -> bool:
    """Whether FLARE's client with this kit speaks to what listens there: its own context, over asyncio."""
    startup = kit / "startup"
    files = {"client_cert": "client.crt", "client_key": "client.key", "ca_cert": "rootCA.pem"}
    params = {"scheme": "https", **{name: str(startup / file) for name, file in files.items()}}
    context = net_utils.get_ssl_context(params, False)

    async def asked() -> bool:
        reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context)
        writer.write(b"hello\n")
        try:
            return (await reader.readline()).startswith(b"HTTP")
        finally:
            writer.close()
            with suppress(OSError):
                await writer.wait_closed()

    try:
        return asyncio.run(asked())
    except OSError:
        return False


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    # FLARE's own, whatever a test before this one left in the process
    monkeypatch.setattr(net_utils, "get_ssl_context", inspect.unwrap(net_utils.get_ssl_context))
    return module.require_server_identity


@pytest.mark.parametrize("member", ["sites/site-2", "admins/ada", "admins/lea"])
@pytest.mark.parametrize("asking", ["sites/site-1", "admins/ada"])
def test_a_members_certificate_is_not_taken_for_the_servers(
    federation: Path, held: Callable[[], None], refusals: Refused, member: str, asking: str
) -> None:
    """By itself FLARE's client takes it, as far as TLS goes."""
    with tls_servers.opened(federation / member, shows="client") as posing:
        assert reached(federation / asking, posing.port)
        held()
        held()  # once is enough
        assert not reached(federation / asking, posing.port)
    (line,) = refusals()
    name = member.split("/")[1] + ("@shepherd.local" if member.startswith("admins") else "")
    assert line.endswith(f"shows the certificate of {name}, not of localhost")


def test_the_server_itself_is_taken(federation: Path, held: Callable[[], None]) -> None:
    held()
    with tls_servers.opened(federation / "server") as door:
        assert reached(federation / "sites" / "site-1", door.port)
        assert reached(federation / "admins" / "ada", door.port)
