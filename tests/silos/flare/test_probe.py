from __future__ import annotations

import shutil
import socket
import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from tests.silos.flare import federations, tls_servers

from shepherd.errors import OutOfReach, SilosError
from shepherd.silos.flare import kits, probe
from shepherd.silos.flare.kits import Kit
from shepherd.silos.flare.probe import HungUp, Reached, clock, reach, require_port


@pytest.fixture
def kit(federation: Path, tmp_path: Path) -> Kit:
    """Of site-1, for a test to change."""
    return kits.read(federations.copied(federation / "sites" / "site-1", tmp_path / "kit"))


def test_a_server_that_takes_the_kit(federation: Path, kit: Kit) -> None:
    with tls_servers.opened(federation / "server") as door:
        reached = reach(replace(kit, port=door.port))
    assert reached.skew is not None
    assert abs(reached.skew) < 3
    assert clock(reached) is None


@pytest.mark.parametrize(("ahead", "said"), [(600, "10 min behind the server's"), (-600, "10 min ahead of")])
def test_clocks_apart(federation: Path, kit: Kit, ahead: float, said: str) -> None:
    with tls_servers.opened(federation / "server", ahead=ahead) as door:
        assert said in str(clock(reach(replace(kit, port=door.port))))


def test_a_server_that_tells_no_time() -> None:
    assert clock(Reached(skew=None)) is None


def test_no_such_name(kit: Kit) -> None:
    with pytest.raises(OutOfReach, match=r"nowhere.invalid cannot be resolved .* DNS"):
        reach(replace(kit, host="nowhere.invalid"))


def test_nobody_listens(kit: Kit) -> None:
    with pytest.raises(OutOfReach, match="nothing listens at localhost"):
        reach(replace(kit, port=federations.free_port()))


def proxies(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    for name in probe._PROXIES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    for name in names:
        monkeypatch.setenv(name, "http://me:of-mine@proxy.example:3128")


@pytest.mark.parametrize("name", ["https_proxy", "HTTP_PROXY", "ALL_PROXY", "grpc_proxy"])
def test_a_proxy_is_not_asked_and_that_is_said(kit: Kit, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    proxies(monkeypatch, name)
    for lost in (replace(kit, host="nowhere.invalid"), replace(kit, port=federations.free_port())):
        with pytest.raises(
            OutOfReach, match=f"the connection is direct, and not through the proxy in {name}$"
        ):
            reach(lost)
    with (
        socket.create_server(("127.0.0.1", 0)) as silent,
        pytest.raises(OutOfReach, match=f"proxy in {name}$"),
    ):
        reach(replace(kit, port=silent.getsockname()[1]), timeout=0.1)


def test_a_server_is_reached_whatever_proxy_there_is(
    federation: Path, kit: Kit, monkeypatch: pytest.MonkeyPatch
) -> None:
    proxies(monkeypatch, *probe._PROXIES)
    with tls_servers.opened(federation / "server") as door:
        assert reach(replace(kit, port=door.port)).skew is not None


def test_without_a_proxy_there_is_no_word_of_one(kit: Kit, monkeypatch: pytest.MonkeyPatch) -> None:
    proxies(monkeypatch)
    with pytest.raises(OutOfReach, match=r"start the server with `shepherd silos server`$"):
        reach(replace(kit, port=federations.free_port()))


def test_a_name_that_leads_to_ipv6_alone(kit: Kit, monkeypatch: pytest.MonkeyPatch) -> None:
    """FLARE listens on IPv4 only."""
    proxies(monkeypatch)
    six = [(socket.AF_INET6, socket.SOCK_STREAM, 6, "", ("::1", 0, 0, 0))]
    monkeypatch.setattr(probe.socket, "getaddrinfo", lambda *_, **__: six)
    with pytest.raises(
        OutOfReach, match=r"the name localhost resolves to IPv6 only, .* give it an IPv4 address"
    ):
        reach(replace(kit, port=federations.free_port()))


def test_a_server_that_says_nothing(kit: Kit) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        began = time.monotonic()
        with pytest.raises(OutOfReach, match=r"does not answer within 0.3 s"):
            reach(replace(kit, port=silent.getsockname()[1]), timeout=0.3)
    assert time.monotonic() - began < 3


def test_something_that_speaks_no_tls(kit: Kit) -> None:
    with socket.create_server(("127.0.0.1", 0)) as plain:
        import threading

        def answer() -> None:
            connection, _ = plain.accept()
            with connection:
                connection.recv(100)
                connection.sendall(b"220 mail.example.org ready\r\n")
                connection.recv(100)

        thread = threading.Thread(target=answer)
        thread.start()
        with pytest.raises(SilosError, match="is no server of a federation"):
            reach(replace(kit, port=plain.getsockname()[1]))
        thread.join()


def test_the_server_of_another_federation(other_federation: Path, kit: Kit) -> None:
    with (
        tls_servers.opened(other_federation / "server") as door,
        pytest.raises(SilosError, match=r"belongs to another federation: the authority of this kit"),
    ):
        reach(replace(kit, port=door.port))


def test_a_server_under_another_name(federation: Path, kit: Kit) -> None:
    with (
        tls_servers.opened(federation / "server") as door,
        pytest.raises(SilosError, match=r"certificate of localhost, and this kit expects fl.example.org"),
    ):
        reach(replace(kit, port=door.port, identity="fl.example.org"))


@pytest.mark.parametrize(
    ("signed", "ends", "alert"), [(False, 30, "unknown ca|closed"), (True, -0.5, "expired|closed")]
)
def test_a_certificate_that_the_server_refuses(
    federation: Path, kit: Kit, signed: bool, ends: float, alert: str
) -> None:
    federations.reissued(kit.folder, federation / "authority" if signed else None, ends=ends)
    with (
        tls_servers.opened(federation / "server") as door,
        pytest.raises(SilosError, match=rf"refuses the certificate of site-1 \(.*({alert})") as raised,
    ):
        reach(replace(kit, port=door.port))
    assert not isinstance(raised.value, OutOfReach)  # waiting will not help


def minutes(number: float) -> float:
    """In days."""
    return number / 24 / 60


def test_a_certificate_that_begins_in_a_minute(federation: Path, kit: Kit) -> None:
    """By the server's clock; by this one the kit would not be read."""
    federations.reissued(kit.folder, federation / "authority", begins=minutes(1))
    new = replace(kit, not_before=datetime.now(UTC) - timedelta(minutes=59))
    with (
        tls_servers.opened(federation / "server") as door,
        pytest.raises(SilosError, match=r"clock may be behind 20\d\d-.* UTC, before which") as raised,
    ):
        reach(replace(new, port=door.port))
    assert not isinstance(raised.value, OutOfReach)


def test_an_old_kit_is_not_refused_for_being_new(federation: Path, kit: Kit) -> None:
    federations.reissued(kit.folder, None)
    with (
        tls_servers.opened(federation / "server") as door,
        pytest.raises(SilosError, match=r"the server's log says which$"),
    ):
        reach(replace(kit, port=door.port, not_before=datetime.now(UTC) - timedelta(days=9)))


@pytest.mark.parametrize(
    ("begins", "ends", "words"),
    [
        (minutes(1), 30, "is not valid yet by .*; set the clock, or wait"),
        (-2, -1, "has expired by .* a new kit"),
    ],
)
def test_the_servers_certificate_does_not_hold(
    federation: Path, kit: Kit, tmp_path: Path, begins: float, ends: float, words: str
) -> None:
    server = federations.copied(federation / "server", tmp_path / "server")
    for kind in ("crt", "key"):  # the server's own name in a certificate of other days
        shutil.copy(server / "startup" / f"server.{kind}", server / "startup" / f"client.{kind}")
    federations.reissued(server, federation / "authority", begins=begins, ends=ends)
    with (
        tls_servers.opened(server, shows="client") as door,
        pytest.raises(SilosError, match=words) as raised,
    ):
        reach(replace(kit, port=door.port))
    assert not isinstance(raised.value, OutOfReach)


def test_a_port_may_be_listened_at_or_is_taken(federation: Path) -> None:
    server = kits.read(federation / "server")
    with socket.socket() as free:  # nobody's, and no longer than the test
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    require_port(replace(server, port=port))
    for address in ("127.0.0.1", ""):
        with (
            socket.create_server((address, port)),
            pytest.raises(
                SilosError,
                match=f"port {port} is taken on this machine .* stop the program that listens there",
            ),
        ):
            require_port(replace(server, port=port))


def test_a_server_that_hangs_up_is_told_from_one_that_says_no(federation: Path, kit: Kit) -> None:
    """It may be ending, and there again in a moment."""
    with (
        tls_servers.opened(federation / "server", silent=True) as door,
        pytest.raises(HungUp, match="closed"),
    ):
        reach(replace(kit, port=door.port))
