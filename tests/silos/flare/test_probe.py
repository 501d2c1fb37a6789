from __future__ import annotations

import socket
import time
from dataclasses import replace
from pathlib import Path

import pytest
from tests.silos.flare import federations, tls_servers

from shepherd.errors import OutOfReach, SilosError
from shepherd.silos.flare import kits
from shepherd.silos.flare.kits import Kit
from shepherd.silos.flare.probe import HungUp, Reached, clock, reach


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
    with pytest.raises(OutOfReach, match=r"nowhere.invalid is not known here .* DNS"):
        reach(replace(kit, host="nowhere.invalid"))


def test_nobody_listens(kit: Kit) -> None:
    with pytest.raises(OutOfReach, match="nobody listens at localhost"):
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
        pytest.raises(SilosError, match=r"is of another federation: the authority of this kit"),
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
    assert not isinstance(raised.value, OutOfReach)  # waiting will not mend it


def test_a_server_that_hangs_up_is_told_from_one_that_says_no(federation: Path, kit: Kit) -> None:
    """It may be ending, and there again in a moment."""
    with (
        tls_servers.opened(federation / "server", silent=True) as door,
        pytest.raises(HungUp, match="closed"),
    ):
        reach(replace(kit, port=door.port))
