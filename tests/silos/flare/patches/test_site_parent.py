from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import pytest

pytest.importorskip("nvflare")

from nvflare.fuel.f3.comm_config import CommConfigurator
from nvflare.fuel.utils.config_service import ConfigService
from tests.silos.flare import federations

from shepherd.silos.flare import job_policy, kits
from shepherd.silos.flare.patches import site_parent
from shepherd.silos.flare.supervise import EXIT_NEEDS_PERSON


def test_a_site_says_who_it_is_and_beats_often(tmp_path: Path) -> None:
    arguments = site_parent._arguments("site", tmp_path, "north")
    assert arguments[:4] == ["-m", str(tmp_path), "-s", "fed_client.json"]
    assert {"uid=north", "secure_train=true", f"heart_beat_interval={site_parent.HEARTBEAT_S}"} <= set(
        arguments
    )
    assert "uid" not in " ".join(site_parent._arguments("server", tmp_path, ""))


def test_flare_waits_for_a_slow_line_before_it_sends_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By FLARE's own reading, in the process that it begins in; what it starts has its environment."""
    found: list[float] = []

    def flare(*given: object, **more: object) -> None:
        found.append(CommConfigurator().get_streaming_retry_wait(5.0))

    monkeypatch.setattr(ConfigService, "_var_values", {})  # what an earlier test's FLARE has read
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setattr(site_parent, "SWEEP_INTERVAL_S", 0.01)
    swept, tries = threading.Event(), iter([OSError(24, "Too many open files"), None])

    def sweep(kit: Path, running: set[str]) -> None:
        if (error := next(tries, None)) is not None:
            raise error
        swept.set()  # after one that failed

    monkeypatch.setattr(site_parent, "sweep", sweep)
    for name in ("TMPDIR", "NVFLARE_STREAMING_RETRY_WAIT", "NVFL_JOB_STORE_ROOT", "MALLOC_ARENA_MAX"):
        monkeypatch.setenv(name, "1")  # put back afterwards
    monkeypatch.setattr(site_parent.runpy, "run_module", flare)
    monkeypatch.setattr(job_policy, "log_denials", lambda: None)
    monkeypatch.setattr(site_parent.tls, "watch", lambda kit: None)
    monkeypatch.setattr(site_parent.sys, "argv", [])

    site_parent.main("server", tmp_path, "")

    assert found == [30.0]
    assert os.environ["TMPDIR"] == tempfile.gettempdir() == str(tmp_path / "shepherd" / "tmp")
    assert swept.wait(5.0)


def test_what_it_has_started_is_known_to_run() -> None:
    job = "8b7f2c1e-0000-4000-8000-000000000000"
    with subprocess.Popen([sys.executable, "-c", "input()", job], stdin=subprocess.PIPE) as child:
        assert job in site_parent._running()
        child.communicate(b"\n")
    assert job not in site_parent._running()


def begun(*words: object) -> tuple[int, list[str]]:
    """How the process ends where it cannot begin, and all that it says."""
    command = [sys.executable, "-m", "shepherd.silos.flare.patches.site_parent", *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    return done.returncode, (done.stdout + done.stderr).splitlines()


def test_a_port_that_was_taken_since_is_one_line(federation: Path) -> None:
    kit = federation / "server"
    port = kits.read(kit).port
    with socket.create_server(("127.0.0.1", port)):
        code, (line,) = begun("server", kit)
    assert code == EXIT_NEEDS_PERSON
    assert f"port {port} is taken on this machine" in line


@pytest.mark.parametrize(
    ("begins", "ends", "words"), [(1 / 24 / 60, 30, "is not valid before"), (-2, -1, "expired on")]
)
def test_a_certificate_that_does_not_hold_since_is_one_line(
    federation: Path, tmp_path: Path, begins: float, ends: float, words: str
) -> None:
    """As after a clock was set an hour back, or where a site has run for a year."""
    kit = federations.copied(federation / "sites" / "site-1", tmp_path / "kit")
    federations.reissued(kit, federation / "authority", begins=begins, ends=ends)
    code, (line,) = begun("site", kit, "site-1")
    assert code == EXIT_NEEDS_PERSON
    assert words in line
    assert "clock says" in line
