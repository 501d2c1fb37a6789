"""The commands of a federation over a network: what they say, and what they refuse in a sentence."""

from __future__ import annotations

import importlib.util
import stat
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

pytest.importorskip("nvflare")

from shepherd.core.spending import Poisson, Spending
from shepherd.data.examples import Example, Turn
from shepherd.silos import loopback
from shepherd.silos.coordinator import admin
from shepherd.silos.flare import kits, provision
from shepherd.silos.site import privacy_ledger, serve
from shepherd.silos.site.privacy_ledger import Entry
from shepherd.silos.site.site_settings import SiteDataTable
from shepherd.ui.cli import main as cli
from shepherd.version import install


def run(*words: object) -> Result:
    return CliRunner().invoke(cli.main, [str(word) for word in words])


def created(folder: Path, *more: str) -> Result:
    port = loopback.free_port()
    return run("silos", "create", folder, "--server", f"localhost:{port}", "--site", "charite", *more)


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("federation") / "hospitals"
    assert created(folder, "--site", "lmu", "--admin", "ada", "--admin", "bo:lead").exit_code == 0
    return folder


def test_create_says_which_kit_goes_to_whom(tmp_path: Path) -> None:
    folder = tmp_path / "hospitals"
    told = created(folder, "--site", "lmu", "--admin", "ada")
    assert told.exit_code == 0
    for words in (
        f"{folder}/server goes to localhost",
        f"{folder}/sites/charite is for charite only",
        f"{folder}/sites/lmu is for lmu only",
        f"{folder}/admins/ada is for ada",
        "keep it offline",
    ):
        assert words in told.stdout
    assert kits.read(folder / "sites" / "lmu", "site").name == "lmu"
    assert stat.S_IMODE((folder / "authority").stat().st_mode) == 0o700


def test_a_folder_that_is_taken_is_left_as_it_is(federation: Path) -> None:
    before = (federation / provision.FEDERATION).read_bytes()
    told = created(federation)
    assert (told.exit_code, told.stdout) == (2, "")
    assert told.stderr.startswith("shepherd: ")
    assert (federation / provision.FEDERATION).read_bytes() == before


@pytest.mark.parametrize(
    ("words", "named"),
    [(("--site", "a b"), "a b"), (("--site", "charite"), "charite"), (("--admin", "ada:king"), "king")],
)  # fmt: skip
def test_a_name_or_a_role_that_cannot_be_is_named(tmp_path: Path, words: tuple[str, ...], named: str) -> None:
    told = created(tmp_path / "f", *words)
    assert told.exit_code == 2
    assert named in told.stderr
    assert len(told.stderr.splitlines()) == 1
    assert not (tmp_path / "f").exists()


def test_a_site_is_added_and_removed(federation: Path) -> None:
    added = run("silos", "add-site", federation, "tum")
    assert added.exit_code == 0
    assert f"{federation}/sites/tum is for tum only" in added.stdout
    removed = run("silos", "remove-site", federation, "tum")
    assert removed.exit_code == 2  # no server runs
    assert "tum is recorded as removed" in removed.stderr
    assert "run the command again once that is fixed" in removed.stderr
    assert provision.read(federation).sites["tum"] == "removed"
    again = run("silos", "add-site", federation, "tum")
    assert again.exit_code == 2
    assert "tum" in again.stderr


def test_a_lead_may_not_remove_a_site(federation: Path) -> None:
    told = run("silos", "remove-site", federation, "lmu", "--kit", federation / "admins" / "bo")
    assert told.exit_code == 2
    assert "use the kit of a project_admin" in told.stderr
    assert provision.read(federation).sites["lmu"] != "removed"


def numbers() -> list[Example]:
    answer = Turn(role="assistant", text="A number.")
    return [Example(turns=(Turn(role="user", text=f"What is {n}?"), answer)) for n in range(40)]


def test_a_site_can_be_checked_before_anything_is_joined(tmp_path: Path) -> None:
    file = tmp_path / "site.toml"
    written = run("silos", "check", "--new", file)
    assert written.exit_code == 0
    assert f"shepherd silos check {file}" in written.stdout
    assert run("silos", "check", "--new", file).exit_code == 2  # it is not written over
    config = loopback.write_site(tmp_path / "site", numbers())
    told = run("silos", "check", config)
    assert told.exit_code == 0
    assert "this site is ready to join" in told.stdout
    (config.parent / "data.jsonl").write_text('{"instruction": "no answer"}\n')
    told = run("silos", "check", config)
    assert told.exit_code == 2
    assert "data.jsonl" in told.stdout + told.stderr


def test_an_owner_sees_what_is_spent_of_a_sites_privacy(
    federation: Path, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.setattr(serve, "keep", lambda *_: None)
    kit = federation / "sites" / "charite"
    limited = {"require_privacy": ["example"], "max_epsilon": 8.0, "min_batch": 4}
    config = loopback.write_site(tmp_path / "site", numbers(), limited)
    source = config.parent / "data.jsonl"
    started = run("silos", "site", kit, "--config", config)
    assert started.stdout == f"the privacy ledger of {source} is new: no visit counts as spent\n"
    told = run("silos", "check", config, "--kit", kit)
    assert "Spent so far of each example: epsilon 0 of 8 at delta" in told.stdout
    assert not (kit / "shepherd").exists()  # nothing is made by looking

    ledger = privacy_ledger.ledger_of(kit / "shepherd", SiteDataTable(source=str(source)))
    spent = Spending(noise=2.0, sampling=Poisson(chance=0.2), steps=3)
    entry = Entry(when="", run="a", round=0, id="b", unit="example", spent=spent)
    assert privacy_ledger.spend(ledger, [], [entry]) is None
    started = run("silos", "site", kit, "--config", config)
    assert started.stdout == f"the privacy ledger of {source} counts 1 visit\n"
    assert ", after 1 visit." in run("silos", "check", config, "--kit", kit).stdout

    ledger.path.unlink()
    started = run("silos", "site", kit, "--config", config)
    assert (started.exit_code, started.stdout) == (2, "")
    assert f"shepherd: privacy ledger {ledger.path} is missing" in started.stderr
    told = run("silos", "check", config, "--kit", kit)
    assert told.exit_code == 2
    assert f"{ledger.path} is missing" in told.stdout


def test_a_run_is_checked_against_the_sites_policy(tmp_path: Path) -> None:
    config = loopback.write_site(tmp_path / "site", numbers(), {"max_rank": 4})
    run_file = tmp_path / "run.toml"
    run_file.write_text('[model]\nbase = "tiny"\n[data]\nsource = "world"\n[adapter]\nrank = 8\n')
    told = run("silos", "check", config, "--run", run_file)
    assert told.exit_code == 2
    assert "policy max_rank = 4 of site refuses rank 8" in told.stdout
    assert run("silos", "check", config, "--run", tmp_path / "none.toml").exit_code == 2


def test_status_is_a_table(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    seen = admin.Status(server="hub:8002", sites={"a": "is idle"}, runs={"0a1b": "round 1 of 2"})
    monkeypatch.setattr(admin, "status", lambda kit: seen)
    told = run("silos", "status", tmp_path)
    assert told.exit_code == 0
    assert "server hub:8002: 1 site, 1 run" in told.stdout
    assert "is idle" in told.stdout
    assert "round 1 of 2" in told.stdout


def test_a_server_out_of_reach_is_one_sentence(federation: Path) -> None:
    told = run("silos", "status", federation / "admins" / "ada")
    assert told.exit_code == 2
    assert "localhost" in told.stderr
    assert len(told.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    "words",
    [("server", "{0}/sites/lmu"), ("site", "{0}/server", "--config", "x"), ("status", "{0}/sites/lmu"),
     ("server", "{0}/none"), ("stop", "{0}")],
)  # fmt: skip
def test_a_wrong_kit_or_folder_is_one_sentence(federation: Path, words: tuple[str, ...]) -> None:
    told = run("silos", *(word.format(federation) for word in words))
    assert told.exit_code == 2
    assert str(federation) in told.stderr
    assert len(told.stderr.splitlines()) == 1


def test_without_flare_what_to_install_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "nvflare" else found(name))
    for words in (("status", tmp_path), ("create", tmp_path / "f", "--server", "h", "--site", "a")):
        told = run("silos", *words)
        assert told.exit_code == 2
        assert install("silos") in told.stderr
    assert run("silos", "check", "--new", tmp_path / "site.toml").exit_code == 0  # needs none


def test_the_demo_overwrites_nothing(tmp_path: Path) -> None:
    run_file = tmp_path / "run.toml"
    run_file.write_text(f'output = "{tmp_path}/run"\n[model]\nbase = "tiny"\n[data]\nsource = "world"\n')
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "mine").write_text("mine")
    told = run("silos", "demo", run_file, "--folder", tmp_path / "taken")
    assert told.exit_code == 2
    assert str(tmp_path / "taken") in told.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run.toml", "taken"]


def test_an_administrator_is_removed(federation: Path) -> None:
    removed = run("silos", "remove-admin", federation, "bo")
    assert removed.exit_code == 2  # no server runs
    assert "bo@shepherd.local is recorded as removed" in removed.stderr
    assert provision.read(federation).admins["bo@shepherd.local"] == "removed"
    told = run("silos", "remove-admin", federation, "eve")
    assert told.exit_code == 2
    assert "eve is not an administrator" in told.stderr


def test_runs_at_the_server_are_listed_and_deleted_only_with_a_yes(federation: Path) -> None:
    home = federation / "server" / "shepherd" / "runs" / ("a" * 16)
    home.mkdir(parents=True)
    (home / "rounds.jsonl").write_text('{"round": 0}\n{"round": 1}\n')
    listed = run("silos", "runs", federation)
    assert listed.exit_code == 0
    assert "1 run" in listed.stdout
    assert "a" * 16 in listed.stdout
    assert "no run has been idle" in run("silos", "runs", federation, "--older-than", "1").stdout
    asked = run("silos", "runs", federation / "server", "--delete", "a" * 16)
    assert asked.exit_code != 0
    assert home.is_dir()
    gone = run("silos", "runs", federation / "server", "--delete", "a" * 16, "--yes")
    assert gone.exit_code == 0, gone.stderr
    assert f"deleted {'a' * 16}" in gone.stdout
    assert not home.exists()
    assert run("silos", "runs", federation, "--delete", "a" * 16, "--yes").exit_code == 2
