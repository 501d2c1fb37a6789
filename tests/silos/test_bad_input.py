"""What people get wrong with a federation: one sentence, at the end that can repair it, with the remedy.

All of it by the real commands: four sites of one federation, three of them with a fault of their own, and
kits that are not what they should be.
"""

from __future__ import annotations

import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import tomli_w

pytest.importorskip("nvflare")

from shepherd.data import pipeline
from shepherd.run import folder
from shepherd.silos import loopback
from shepherd.silos.coordinator import coordinate
from shepherd.silos.flare import kits, probe, provision
from shepherd.silos.loopback import Loopback
from shepherd.silos.protocol import wire
from shepherd.silos.site import audit, redaction
from shepherd.silos.site import serve as site
from tests.silos import scene as scenes
from tests.silos.flare.federations import moved
from tests.silos.scene import copied, until

pytestmark = pytest.mark.silos

SITES = ("good", "other-base", "old-package", "torn-row")


@dataclass(frozen=True)
class Ran:
    """A run over the four, with the federation still up."""

    made: Loopback
    configs: dict[str, Path]
    said: list[str]
    rows: list[dict[str, Any]]
    run_file: Path

    def log(self, name: str) -> str:
        return (self.made.kit(name) / "shepherd" / "trainer.log").read_text()


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ran]:
    place = tmp_path_factory.mktemp("bad")
    settings = scenes.settings(
        place / "run",
        split={"clients": len(SITES)},
        federation={"rounds": 1, "quorum": 0.2, "sites": SITES},
    )
    division = pipeline.divide(settings)
    configs = {
        name: loopback.write_site(
            place / "sites" / name, division.of(places), {"min_examples": 8, "min_cohort": 1}
        )
        for name, places in zip(SITES, division.clients.values(), strict=True)
    }
    spoil(configs, place / "old")
    made = Loopback(folder=place / "federation", sites=SITES)
    provision.create(made.folder, f"localhost:{loopback.free_port()}", SITES)
    with ExitStack() as ends, pytest.MonkeyPatch.context() as patch:
        older = {name: configs.pop(name) for name in ["old-package"]}
        ends.enter_context(scenes.up(Loopback(folder=made.folder, sites=tuple(configs)), configs))
        patch.setenv("PYTHONPATH", f"{place / 'old'}:{':'.join(sys.path)}")
        words = ["site", str(made.kit("old-package")), "--config", str(older["old-package"])]
        ends.enter_context(loopback.started(made, "old-package", words))
        assert until(lambda: "started" in _text(made.log("old-package")), scenes.READY)
        said: list[str] = []
        run = coordinate.open_run(settings, made.admin, said.append)
        rows = [row for _, row in run.rounds()]
        run.finish()
        yield Ran(made, {**configs, **older}, said, rows, run.folder / folder.RUN_FILE)


def spoil(configs: dict[str, Path], old: Path) -> None:
    table = tomllib.loads(configs["other-base"].read_text())
    table["bases"][0]["sha256"] = "ab" * 32
    configs["other-base"].write_text(tomli_w.dumps(table))
    data = configs["torn-row"].parent / "data.jsonl"
    lines = data.read_text().splitlines()
    data.write_text("\n".join([*lines[:3], lines[3][:20], *lines[4:]]) + "\n")
    about = old / "shepherd_fit_core-0.0.9.dist-info"  # what an older installation says of itself
    about.mkdir(parents=True)
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: shepherd-fit-core\nVersion: 0.0.9\n")


def refused(*words: str) -> subprocess.CompletedProcess[str]:
    """`shepherd WORDS ...`, which must not go well."""
    line = [sys.executable, "-m", "shepherd", *words]
    done = subprocess.run(line, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 2, done.stdout + done.stderr
    return done


def command(*words: str) -> str:
    """The one sentence that `shepherd WORDS ...` ends with."""
    (said,) = refused(*words).stderr.splitlines()
    return said


def test_a_run_goes_on_with_those_that_can(ran: Ran) -> None:
    (row,) = ran.rows
    assert set(row["weights"]) == {"good"}
    assert set(row["failures"]) == set(SITES[1:])


def test_a_base_with_another_hash(ran: Ran) -> None:
    expected = "list its sha256 in the site's [[bases]]"
    assert expected in ran.rows[0]["failures"]["other-base"]
    assert any(line.startswith("other-base: policy bases") for line in ran.said)
    assert expected in ran.log("other-base")


def test_an_old_package_at_a_site(ran: Ran) -> None:
    expected = f"the server has shepherd-fit {wire.version()} and old-package has 0.0.9; install one version"
    assert expected in ran.rows[0]["failures"]["old-package"]
    assert expected in ran.log("old-package")


def test_a_row_that_cannot_be_read(ran: Ran) -> None:
    """Its owner is told the file and the line, and the coordinator that it is the site's to repair."""
    assert ran.rows[0]["failures"]["torn-row"] == redaction.DATA
    assert f"{ran.configs['torn-row'].parent / 'data.jsonl'}, line 4" in ran.log("torn-row")
    shown = refused("silos", "check", str(ran.configs["torn-row"])).stdout
    assert "data.jsonl, line 4" in " ".join(shown.split())


def test_a_kit_of_another_federation(ran: Ran, tmp_path: Path) -> None:
    provision.create(tmp_path / "other", "localhost:1", ["good"])
    kit = moved(tmp_path / "other" / "sites" / "good", kits.read(ran.made.kit("good")).port)
    said = command("silos", "site", str(kit), "--config", str(ran.configs["good"]))
    assert "another federation" in said
    assert "use the kit that was made with that server" in said


def test_a_server_out_of_reach(ran: Ran, tmp_path: Path) -> None:
    provision.create(tmp_path / "other", f"localhost:{loopback.free_port()}", ["good"])
    admin, site_kit = tmp_path / "other" / "admins" / "admin", tmp_path / "other" / "sites" / "good"
    run = ["run", str(ran.run_file), f"output={tmp_path / 'run'}", "--silos", str(admin)]
    for words in (run, ["silos", "status", str(admin)]):
        assert "nothing listens at localhost:" in command(*words)
    assert not (tmp_path / "run").exists()
    made = Loopback(folder=tmp_path / "other", sites=("good",))
    (made.folder / "logs").mkdir()
    waiting = ["site", str(site_kit), "--config", str(ran.configs["good"])]
    with loopback.started(made, "good", waiting):
        assert until(lambda: "trying again" in _text(made.log("good")), 60)
    assert "start the server with `shepherd silos server`; trying again" in _text(made.log("good"))


def test_a_kit_of_the_wrong_kind(ran: Ran) -> None:
    said = command("silos", "status", str(ran.made.kit("good")))
    assert "is a kit of a site, and this needs a kit of an administrator" in said
    said = command("silos", "site", str(ran.made.admin), "--config", str(ran.configs["good"]))
    assert "is a kit of an administrator, and this needs a kit of a site" in said


def test_one_kit_twice_on_one_machine(ran: Ran) -> None:
    said = command("silos", "site", str(ran.made.kit("good")), "--config", str(ran.configs["good"]))
    assert "is already running on this machine; stop it first" in said


def test_one_kit_on_two_machines(ran: Ran, tmp_path: Path) -> None:
    """The server says it, to whom both connect in turn."""
    copy = copied(ran.made.kit("good"), tmp_path / "kit")
    made = Loopback(folder=tmp_path, sites=("good",))
    (tmp_path / "logs").mkdir()
    with loopback.started(made, "good", ["site", str(copy), "--config", str(ran.configs["good"])]):
        server = ran.made.log("server")
        assert until(lambda: "two machines run with the kit of good" in _text(server), 120)


def test_clocks_apart(ran: Ran, monkeypatch: pytest.MonkeyPatch) -> None:
    """A site's owner is told when the site starts; the skew is faked, and the server's answer is real."""
    now = time.time
    monkeypatch.setattr(probe.time, "time", lambda: now() + 600)
    said: list[str] = []

    class Once:
        def is_set(self) -> bool:
            return False

    site._await_server(kits.read(ran.made.kit("good")), said.append, Once())  # type: ignore[arg-type]
    assert any("this machine's clock is 10 min ahead of the server's; set the wrong one" in s for s in said)


def test_what_was_refused_is_in_the_audit_log(ran: Ran) -> None:
    rules = {
        name: {e.rule for e in audit.events(ran.made.kit(name) / "shepherd" / audit.FILE)} for name in SITES
    }
    assert rules == {"good": {""}, "other-base": {"bases"}, "old-package": {"version"}, "torn-row": {""}}


def _text(path: Path) -> str:
    return path.read_text(errors="replace") if path.exists() else ""
