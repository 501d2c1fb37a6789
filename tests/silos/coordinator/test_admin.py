"""Who is there, who is thrown out, and a run that is stopped; the federation is real, its server a script."""

from __future__ import annotations

import shutil
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("nvflare")

from tests.silos.flare import federations
from tests.silos.servers import AWAY, DONE, GONE, ORDER, SILENT, Server, replaced, said

from shepherd.errors import FolderError, OutOfReach, SilosError
from shepherd.overrides import parse
from shepherd.run import folder
from shepherd.run.log import append_row
from shepherd.silos.coordinator import admin as membership
from shepherd.silos.coordinator import state_file
from shepherd.silos.flare import probe, provision
from shepherd.silos.flare.probe import HungUp
from shepherd.silos.flare.session import JobGone, NotAllowed, Quiet, Work

RUN = {"model": {"base": "tiny"}, "data": {"source": "world"}, "federation": {"rounds": 3}}
OF_THREE = replace(ORDER, settings={"federation": RUN["federation"]})
UNDER_WAY = {"round": 2, "rounds": 3, "clients_done": 0, "tokens": 0, "loss": 0.0, "seconds": 1.0}


class Scripted(Server):
    """A server that also throws members out."""

    disabled: list[str]
    records: dict[str, tuple[str, str, bool]]
    """Jobs: who submitted it, its run, whether it is over."""
    kit: Any = SimpleNamespace(host="hub.example", port=8002, name="ada@shepherd.local")

    def disable(self, name: str) -> None:
        self.disabled.append(name)

    def jobs_of(self, admin: str) -> dict[str, tuple[str, bool]]:
        return {job: (run, over) for job, (who, run, over) in self.records.items() if who == admin}


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Scripted:
    made = Scripted([])
    made.disabled, made.records = [], {}
    replaced(monkeypatch, made)
    return made


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return federations.made(tmp_path_factory.mktemp("membership") / "f")


@pytest.fixture
def federation(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "federation"))


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run that has one job at the server, and one round of three."""
    kit = tmp_path / "kit"
    kit.mkdir()
    holder = folder.create(tmp_path / "run", parse(RUN), silos=state_file.text(kit, OF_THREE, "job-0"))
    with closing(holder):
        for number in range(2):
            holder.append({"round": number})
    return tmp_path / "run"


def test_what_each_site_does(server: Scripted, monkeypatch: pytest.MonkeyPatch) -> None:
    server.running, server.runs = {"job-0"}, {"job-9": "other"}
    server.scripts = [[said(2, progress=UNDER_WAY)]]
    working: dict[str, Work] = {
        "c": frozenset(),
        "a": frozenset({"job-9", "job-0"}),
        "b": Quiet.SILENT,
        "d": Quiet.UNWILLING,
    }
    monkeypatch.setattr(server, "working", lambda: working)
    seen = membership.status("kit")
    assert seen.server == "hub.example:8002"
    assert list(seen.sites.items()) == [
        ("a", f"works on {ORDER.run}, other"),
        ("b", "registered, gives no answer"),
        ("c", "is idle"),
        ("d", "registered, does not tell this administrator what it does"),
    ]
    assert seen.runs == {ORDER.run: "round 2 of 3"}


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (said(2, progress=UNDER_WAY), "round 2 of 3"),
        (said(2, DONE), "has ended"),
        (said(1, {"error": "a fault", "kind": "QuorumNotMet"}), "has ended in an error; see its run folder"),
        (said(0, progress=UNDER_WAY, opened=False), "is waiting for its sites"),
        (SILENT, "is starting or ending, and does not respond now"),
        (GONE, "is starting or ending, and does not respond now"),
        (said(2, progress={"round": 1}), "reports an unreadable status"),
        (NotAllowed("the server does not let bob do this"), "only its submitter"),
    ],
)
def test_how_far_a_run_is(server: Scripted, answer: Any, words: str) -> None:
    server.running, server.submitted, server.scripts = {"job-0"}, ["job-0"], [[answer]]
    assert words in membership.status("kit").runs[ORDER.run]
    assert all(asked.keys() == {"rows", "said"} for asked in server.asked)  # who follows it is not disturbed


def test_a_job_that_the_server_forgets_meanwhile(server: Scripted, monkeypatch: pytest.MonkeyPatch) -> None:
    def forgotten(job: str) -> str:
        raise JobGone("forgotten")

    server.running, server.submitted, server.scripts = {"job-0"}, ["job-0"], [[GONE]]
    monkeypatch.setattr(server, "run", forgotten)
    assert list(membership.status("kit").runs) == ["job-0"]


@pytest.mark.parametrize("error", [AWAY, SilosError("the server refuses bob; ask for a new kit")])
def test_a_server_that_goes_meanwhile_is_said(server: Scripted, error: SilosError) -> None:
    server.running, server.submitted, server.scripts = {"job-0"}, ["job-0"], [[error]]
    with pytest.raises(type(error)):
        membership.status("kit")


def test_a_removed_site_is_remembered_and_thrown_out(server: Scripted, federation: Path) -> None:
    said = membership.remove(federation, "site-1")
    assert server.disabled == ["site-1"]
    assert "site-1 is removed" in said[0]
    assert "disconnected it" in said[1]
    assert provision.read(federation).sites["site-1"] == "removed"


@pytest.mark.parametrize("error", [AWAY, HungUp("it is ending"), SilosError("the clocks are apart; set one")])
def test_a_server_that_was_not_told_still_lets_a_site_in(
    server: Scripted, federation: Path, error: SilosError
) -> None:
    server.logins = [error]
    with pytest.raises(type(error), match=r"still accepts it, .* run the command again once that is fixed"):
        membership.remove(federation, "site-1")
    assert server.disabled == []
    assert provision.read(federation).sites["site-1"] == "removed"
    assert "disconnected it" in membership.remove(federation, "site-1")[1]
    assert server.disabled == ["site-1"]


def test_a_kit_of_another_federation_removes_nobody(
    server: Scripted, federation: Path, tmp_path: Path
) -> None:
    other = Path(shutil.copytree(federation, tmp_path / "other"))
    provision.write(other, replace(provision.read(other), name="shepherd-0therone"))
    with pytest.raises(SilosError, match=r"for another federation \(shepherd-.*not shepherd-0therone"):
        membership.remove(other, "site-1", federation / "admins" / "ada")
    assert server.disabled == []
    assert provision.read(other).sites["site-1"] != "removed"


def test_without_an_administrators_kit_nothing_is_noted(server: Scripted, federation: Path) -> None:
    shutil.rmtree(federation / "admins")
    with pytest.raises(SilosError, match="name one with --kit"):
        membership.remove(federation, "site-1")
    assert provision.read(federation).sites["site-1"] != "removed"


@pytest.mark.parametrize(
    ("kit", "words"),
    [
        ("admins/lea", "lea.* has the role lead .* use the kit of a project_admin"),
        ("sites/site-2", "is a kit of a site"),
        ("nowhere", "is not a kit"),
    ],
)
def test_a_kit_that_may_not_remove_leaves_everything_as_it_is(
    server: Scripted, federation: Path, kit: str, words: str
) -> None:
    with pytest.raises(SilosError, match=words):
        membership.remove(federation, "site-1", federation / kit)
    assert server.disabled == []
    assert provision.read(federation).sites["site-1"] != "removed"


def test_a_site_that_is_none_is_said(server: Scripted, federation: Path) -> None:
    with pytest.raises(SilosError, match="site-9"):
        membership.remove(federation, "site-9")
    assert server.events == []


# administrators ------------------------------------------------------------------------------------------

LEA = "lea@shepherd.local"


def test_a_removed_administrator_is_remembered_and_shut_out(server: Scripted, federation: Path) -> None:
    said = membership.remove_admin(federation, "lea")
    assert server.disabled == [LEA]
    assert said == [
        f"{LEA} is removed from the federation in {federation}; its kit is no longer valid",
        "the running server has ended the sessions of that kit and accepts no new one",
        f"submitted by {LEA}: no run; `shepherd silos runs` at the server lists older ones too",
    ]
    assert provision.read(federation).admins[LEA] == "removed"
    assert "opens nothing" in (federation / "admins" / "lea" / "REMOVED").read_text()
    assert membership.remove_admin(federation, LEA)  # again, where the server has forgotten


@pytest.mark.parametrize("stop", [False, True])
def test_which_runs_were_theirs_is_said_and_they_end_if_asked(
    server: Scripted, federation: Path, stop: bool
) -> None:
    server.records = {
        "job-0": (LEA, "one", True),
        "job-1": (LEA, "two", False),
        "job-2": (LEA, "two", True),
        "job-3": ("ada@shepherd.local", "three", False),
    }
    said = membership.remove_admin(federation, "lea", stop_runs=stop)[2]
    assert said.startswith(f"submitted by {LEA}: one, two, of which two ")
    assert ("were stopped" in said) == stop
    assert ("--stop-runs" in said) != stop
    assert server.aborted == (["job-1"] if stop else [])


def test_of_two_project_admins_another_removes_the_one(server: Scripted, federation: Path) -> None:
    """By default it is not the kit that is shut out in that moment."""
    wider = provision.read(federation)
    provision.write(
        federation, replace(wider, admins={**wider.admins, "zoe@shepherd.local": "project_admin"})
    )
    shutil.copytree(federation / "admins" / "ada", federation / "admins" / "zoe")
    assert membership._first_admin(federation, provision.read(federation), "ada@shepherd.local").name == "zoe"
    assert membership._first_admin(federation, provision.read(federation)).name == "ada"
    membership.remove_admin(federation, "ada")
    assert membership._first_admin(federation, provision.read(federation)).name == "zoe"


@pytest.mark.parametrize(
    ("refusal", "done"),
    [
        (HungUp("it closed the connection"), True),
        (SilosError("it refuses ada"), True),
        (AWAY, False),
        (None, False),
    ],
)
def test_the_only_project_admin_may_go_and_is_cut_off_in_the_middle(
    server: Scripted,
    federation: Path,
    monkeypatch: pytest.MonkeyPatch,
    refusal: SilosError | None,
    done: bool,
) -> None:
    def cut(name: str) -> None:
        raise OutOfReach("the server gave no answer")

    def reached(kit: Any) -> None:
        if refusal:
            raise refusal

    monkeypatch.setattr(server, "disable", cut)
    monkeypatch.setattr(probe, "reach", reached)
    if done:
        assert "is removed" in membership.remove_admin(federation, "ada")[0]
        return
    with pytest.raises(OutOfReach, match="still accepts it"):
        membership.remove_admin(federation, "ada")


@pytest.mark.parametrize("error", [AWAY, SilosError("the clocks are apart; set one")])
def test_a_server_that_was_not_told_still_lets_an_administrator_in(
    server: Scripted, federation: Path, error: SilosError
) -> None:
    server.logins = [error]
    with pytest.raises(type(error), match=r"lea@shepherd\.local is recorded .* still accepts it, .* run the"):
        membership.remove_admin(federation, "lea")
    assert server.disabled == []
    membership.remove_admin(federation, "lea")
    assert server.disabled == [LEA]


@pytest.mark.parametrize("name", ["eve", "site-1", "ada@example.org", ""])
def test_an_administrator_who_is_none_is_said(server: Scripted, federation: Path, name: str) -> None:
    before = provision.read(federation)
    with pytest.raises(SilosError, match=r"is not an administrator .* administrators are ada, lea"):
        membership.remove_admin(federation, name)
    assert (server.events, provision.read(federation)) == ([], before)


def test_a_lead_removes_no_administrator(server: Scripted, federation: Path) -> None:
    with pytest.raises(SilosError, match="may not remove members"):
        membership.remove_admin(federation, "ada", federation / "admins" / "lea")
    assert server.disabled == []
    assert provision.read(federation).admins["ada@shepherd.local"] == "project_admin"


# runs ------------------------------------------------------------------------------------------------------


def test_a_run_is_stopped_at_the_server_and_for_whoever_follows_it(server: Scripted, run: Path) -> None:
    server.running = {"job-0"}
    assert membership.stop(run) == f"stopped; continue with: shepherd resume {run}"
    assert server.aborted == ["job-0"]
    assert (run / state_file.STOP_FILE).exists()


def test_the_word_to_stop_is_there_before_the_job_ends(
    server: Scripted, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or whoever follows the run would begin another."""
    server.running = {"job-0"}
    marked: list[bool] = []
    monkeypatch.setattr(server, "abort", lambda job: marked.append((run / state_file.STOP_FILE).exists()))
    membership.stop(run)
    assert marked == [True]


def test_a_job_that_waits_for_its_turn_is_stopped_too(server: Scripted, run: Path) -> None:
    server.statuses = {"job-0": "SUBMITTED"}
    membership.stop(run)
    assert server.aborted == ["job-0"]


@pytest.mark.parametrize("forgotten", [False, True])
def test_a_job_that_has_ended_is_not_asked_to(
    server: Scripted, run: Path, monkeypatch: pytest.MonkeyPatch, forgotten: bool
) -> None:
    def status(job: str) -> str:
        raise GONE

    if forgotten:
        monkeypatch.setattr(server, "status", status)
    assert membership.stop(run).startswith("stopped")
    assert server.aborted == []


def test_a_run_gets_another_name_and_no_job(server: Scripted, run: Path) -> None:
    server.running = {"job-0"}
    said = membership.new_id(run)
    assert said.endswith(f"shepherd resume {run}")
    assert server.aborted == ["job-0"]
    kit, order, job = state_file.read_state(run)
    assert (kit, job) == (run.parent / "kit", None)
    assert order.run != ORDER.run
    assert replace(order, run=ORDER.run) == OF_THREE


def test_a_run_that_is_followed_or_over_keeps_its_name(server: Scripted, run: Path) -> None:
    with (
        closing(folder.reopen(run)),
        pytest.raises(FolderError, match=r"this process already holds the run in"),
    ):
        membership.new_id(run)
    for number in (2, 3):
        append_row(run, {"round": number})
    assert membership.new_id(run) == f"the run in {run} has ended already"
    assert state_file.read_state(run)[1] == OF_THREE
    assert server.events == []


def test_a_run_without_a_job_is_stopped_without_a_server(server: Scripted, run: Path) -> None:
    (run / folder.SILOS).write_text(state_file.text(run.parent / "kit", ORDER, None))
    assert membership.stop(run).startswith("stopped")
    assert server.events == []
    assert (run / state_file.STOP_FILE).exists()


def test_a_run_that_is_over_is_not_stopped(server: Scripted, run: Path) -> None:
    for number in (2, 3):
        append_row(run, {"round": number})
    assert membership.stop(run) == f"the run in {run} has ended already"
    assert not (run / state_file.STOP_FILE).exists()


def test_a_server_out_of_reach_is_said(server: Scripted, run: Path) -> None:
    server.logins = [AWAY]
    with pytest.raises(OutOfReach):
        membership.stop(run)


def test_a_kit_that_has_moved_can_be_named(server: Scripted, run: Path) -> None:
    server.running = {"job-0"}
    (run.parent / "kit").rename(run.parent / "elsewhere")
    with pytest.raises(SilosError, match="does not exist; name the kit with --silos"):
        membership.stop(run)
    assert not (run / state_file.STOP_FILE).exists()
    membership.stop(run, run.parent / "elsewhere")
    assert server.aborted == ["job-0"]


def test_a_folder_without_a_run_is_said(server: Scripted, tmp_path: Path) -> None:
    with pytest.raises(FolderError, match="does not hold a run over silos"):
        membership.stop(tmp_path / "nothing")
