"""A real server and a real site on loopback, kept running by the code that the commands run."""

from __future__ import annotations

import configparser
import os
import re
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from click.testing import CliRunner

pytest.importorskip("nvflare")

from shepherd.errors import SilosError
from shepherd.silos.flare import kits
from shepherd.silos.flare.kits import Kit
from shepherd.silos.flare.probe import MAX_HANG_UPS, HungUp, Reached
from shepherd.silos.server import serve as server
from shepherd.silos.site import serve as site
from shepherd.ui.cli import main as cli
from tests.silos.flare import federations

Keep = Callable[[Callable[[str], None], threading.Event], None]


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return federations.made(tmp_path_factory.mktemp("federations") / "f", sites=1)


class Running:
    """What a kept process has said."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.raised: list[BaseException] = []

    def started(self) -> list[int]:
        found = (re.match(r"flare started \(process (\d+)\)", line) for line in list(self.said))
        return [int(match[1]) for match in found if match]


@contextmanager
def running(keep: Keep) -> Iterator[Running]:
    one, stop = Running(), threading.Event()

    def run() -> None:
        try:
            keep(one.said.append, stop)
        except SilosError as error:
            one.raised.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield one
    finally:
        stop.set()
        thread.join(30)
        assert not thread.is_alive()


def the_server(federation: Path) -> Keep:
    kit = server.kit_in(federation)
    return lambda echo, stop: server.keep(kit, echo, stop)


def a_site(kit: Kit) -> Keep:
    return lambda echo, stop: site.keep(kit, [site._flare(kit)], echo, stop)


def until(true: Callable[[], object], seconds: float = 40.0) -> None:
    ends = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < ends, "it took too long"
        time.sleep(0.05)


def registered(federation: Path) -> int:
    """How often the server has taken the site in."""
    return _lines(federation / "server", r"New client site-1@|Re-activate the client: site-1")


def told(kit: Kit) -> int:
    """How often the site has been told so; who is not, since the server dies, begins once more."""
    return _lines(kit.folder, "Successfully registered client:site-1")


def _lines(kit: Path, pattern: str) -> int:
    log = kit / "shepherd" / "flare.log"
    return len(re.findall(pattern, log.read_text() if log.exists() else ""))


def test_both_are_started_again_when_they_are_killed_and_find_each_other(
    federation: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("https_proxy", "http_proxy", "all_proxy", "grpc_proxy", "wss_proxy"):  # that lead nowhere
        monkeypatch.setenv(name, "http://127.0.0.1:9")
        monkeypatch.setenv(name.upper(), "socks5://127.0.0.1:9")
    kit = kits.read(federation / "sites" / "site-1", "site")
    with running(a_site(kit)) as member:
        until(lambda: member.said)
        assert "nothing listens" in member.said[0]  # a site may be up before the server
        assert "not through the proxy in https_proxy" in member.said[0]
        with running(the_server(federation)) as host:
            until(lambda: registered(federation) == told(kit) == 1)
            os.kill(member.started()[0], signal.SIGKILL)
            until(lambda: registered(federation) == told(kit) == 2)
            os.kill(host.started()[0], signal.SIGKILL)
            until(lambda: registered(federation) == 3)
            with pytest.raises(SilosError, match="is already running on this machine"):
                a_site(kit)(lambda line: None, threading.Event())
    pids = host.started() + member.started()
    assert len(pids) == 4
    assert not any(map(psutil.pid_exists, pids))
    assert not host.raised + member.raised
    assert [line for line in host.said if "killed" in line] == [
        next(line for line in host.said if line.startswith("flare was killed by SIGKILL after"))
    ]


def test_a_port_that_is_taken_is_said_before_anything_starts(federation: Path) -> None:
    kit = server.kit_in(federation / "server")
    with socket.create_server(("", kit.port)), pytest.raises(SilosError, match=f"port {kit.port} is taken"):
        server.keep(kit, lambda line: None, threading.Event())


def test_a_port_that_is_taken_while_the_server_is_down_ends_it_with_a_sentence(
    federation: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And not with a start every half minute."""
    kit = server.kit_in(federation / "server")
    monkeypatch.setattr(server, "require_port", lambda kit: None)  # it was free a moment ago
    said: list[str] = []
    with (
        socket.create_server(("", kit.port)),
        pytest.raises(
            SilosError, match=f"^port {kit.port} is taken on this machine .* stop the program that listens"
        ),
    ):
        server.keep(kit, said.append, threading.Event())
    assert [line for line in said if "started" in line] == said[-2:-1]
    assert said[-1] == "stopped"


def test_clocks_apart_are_said_while_a_site_runs(federation: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kit = kits.read(federation / "sites" / "site-1", "site")
    answers = [Reached(skew=0.0), Reached(skew=3600.0), Reached(skew=3601.0), Reached(skew=1.0)]
    said: list[str] = []
    stop = threading.Event()

    def reach(kit: Kit) -> Reached:
        if len(answers) == 1:
            stop.set()
        return answers.pop(0)

    monkeypatch.setattr(site, "reach", reach)
    monkeypatch.setattr(site, "SERVER_CHECK_S", 0.001)
    site._watch(kit, said.append, stop)
    assert [line[:40] for line in said] == [
        "this machine's clock is 60 min ahead of ",
        f"the server at localhost:{kit.port} is reachable, and the clocks agree"[:40],
    ]


def test_a_stranger_is_told_and_starts_nothing(federation: Path, tmp_path: Path) -> None:
    folder = federations.copied(federation / "sites" / "site-1", tmp_path / "kit")
    federations.reissued(folder, federation / "authority", ends=-0.5)
    (tmp_path / "site.toml").write_text("")
    with pytest.raises(SilosError, match=r"expired on .* ask the person who made the federation"):
        site.join(folder, tmp_path / "site.toml", lambda line: None)


def test_waiting_for_a_server_can_be_stopped(federation: Path) -> None:
    kit = kits.read(federation / "sites" / "site-1", "site")
    with running(a_site(replace(kit, port=federations.free_port()))) as member:
        until(lambda: member.said)
    assert len(member.said) == 1
    assert member.started() == []


@pytest.mark.parametrize("times", [MAX_HANG_UPS, MAX_HANG_UPS + 1])
def test_a_server_that_hangs_up_may_be_ending(
    federation: Path, monkeypatch: pytest.MonkeyPatch, times: int
) -> None:
    kit = kits.read(federation / "sites" / "site-1", "site")
    answers = [HungUp("it closed the connection; it may be ending")] * times
    said: list[str] = []

    def reach(kit: Kit) -> Reached:
        if answers:
            raise answers.pop()
        return Reached(skew=0.0)

    monkeypatch.setattr(site, "reach", reach)
    monkeypatch.setattr(site, "_FIRST_PAUSE_S", 0.001)
    if times > MAX_HANG_UPS:
        with pytest.raises(HungUp):
            site._await_server(kit, said.append, threading.Event())
        return
    site._await_server(kit, said.append, threading.Event())
    assert said[0] == "it closed the connection; it may be ending; trying again"
    assert "has reached the server" in said[1]


def test_loosened_settings_are_put_back_before_anything_starts(federation: Path, tmp_path: Path) -> None:
    folder = federations.copied(federation / "sites" / "site-1", tmp_path / "kit")
    loose = folder / "local" / "resources.json"
    loose.write_text(loose.read_text().replace('"allow_log_streaming": false', '"allow_log_streaming": true'))
    with running(a_site(replace(kits.read(folder), port=federations.free_port()))) as member:
        until(lambda: member.said)
    assert "allow_log_streaming had been loosened" in member.said[0]
    assert '"allow_log_streaming": false' in loose.read_text()


@pytest.mark.parametrize("name", ["server", "site"])
def test_systemd_does_not_start_again_what_ended_with_a_sentence(name: str) -> None:
    unit = configparser.ConfigParser(strict=False)
    unit.optionxform = str  # type: ignore[assignment]
    unit.read(Path(__file__).parents[2] / "docs" / "deploy" / f"shepherd-{name}.service")
    config = ["--config", "/nowhere/site.toml"] if name == "site" else []
    ended = CliRunner().invoke(cli.main, ["silos", name, "/nowhere", *config])
    assert "/nowhere is not a kit" in ended.output
    assert unit["Service"]["RestartPreventExitStatus"] == str(ended.exit_code)
