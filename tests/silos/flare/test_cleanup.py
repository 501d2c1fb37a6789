from __future__ import annotations

import json
import os
import time
import uuid
from pathlib import Path

import pytest
from nvflare.apis.job_def import RunStatus

from shepherd.errors import FolderError
from shepherd.silos.flare import cleanup


def record(kit: Path, status: str, age: int = 0) -> Path:
    folder = kit / cleanup.JOBS / str(uuid.uuid4())
    folder.mkdir(parents=True)
    (folder / "meta").write_text(json.dumps({"status": status, "name": "x"}))
    os.utime(folder, (1e9 - age, 1e9 - age))
    return folder


def status(folder: Path) -> str:
    return str(json.loads((folder / "meta").read_text())["status"])


def test_the_words_are_flares_own() -> None:
    assert RunStatus.ABANDONED == cleanup.ABANDONED
    assert {RunStatus.RUNNING.value, RunStatus.DISPATCHED.value} == cleanup._UNFINISHED
    assert {RunStatus.SUBMITTED.value, RunStatus.APPROVED.value} == cleanup._WAITING


def test_a_job_that_was_cut_off_is_ended_and_the_others_are_left(tmp_path: Path) -> None:
    states = ["RUNNING", "DISPATCHED", "SUBMITTED", "FINISHED:COMPLETED"]
    folders = [record(tmp_path, state) for state in states]
    cleanup.tidy(tmp_path)
    ended = cleanup.ABANDONED
    assert [status(folder) for folder in folders] == [ended, ended, "SUBMITTED", "FINISHED:COMPLETED"]
    assert json.loads((folders[0] / "meta").read_text())["name"] == "x"


def test_the_newest_stay_and_so_does_all_that_waits_or_is_not_a_jobs(tmp_path: Path) -> None:
    over = [record(tmp_path, "FINISHED:COMPLETED", age) for age in range(cleanup.MAX_KEPT_JOBS + 3)]
    waiting = record(tmp_path, "SUBMITTED", age=999)
    for n in range(cleanup.MAX_KEPT_JOBS + 2):
        run = tmp_path / str(uuid.uuid4())
        run.mkdir()
        os.utime(run, (1e9 + n, 1e9 + n))
    for name in ("startup", "local", "shepherd", "00000000-not-a-job"):
        (tmp_path / name).mkdir()
    cleanup.tidy(tmp_path)
    assert [folder.is_dir() for folder in over] == [True] * cleanup.MAX_KEPT_JOBS + [False] * 3
    assert waiting.is_dir()
    kept = {entry.name for entry in tmp_path.iterdir()}
    assert len(kept) == cleanup.MAX_KEPT_JOBS + 5
    assert {"startup", "local", "shepherd", "00000000-not-a-job", "jobs"} <= kept


def test_a_damaged_record_is_left_as_it_is_and_an_empty_kit_stays_empty(tmp_path: Path) -> None:
    cleanup.tidy(tmp_path)
    assert list(tmp_path.iterdir()) == []
    damaged = record(tmp_path, "RUNNING") / "meta"
    damaged.write_text("{")
    cleanup.tidy(tmp_path)
    assert damaged.read_text() == "{"


def test_an_audit_log_that_has_grown_is_set_aside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cleanup, "MAX_AUDIT_BYTES", 10)
    for content in ("x" * 10, "x" * 11):
        (tmp_path / "audit.log").write_text(content)
        cleanup.tidy(tmp_path)
        if len(content) == 10:
            assert [entry.name for entry in tmp_path.iterdir()] == ["audit.log"]
    assert (tmp_path / "audit.log.1").read_text() == "x" * 11
    assert (tmp_path / "audit.log").read_text() == ""


def test_an_audit_log_that_is_open_goes_on_in_its_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cleanup, "MAX_AUDIT_BYTES", 10)
    with open(tmp_path / "audit.log", "a") as log:  # as FLARE opens it
        log.write("x" * 11)
        log.flush()
        cleanup.sweep(tmp_path, ())
        log.write("y")
    assert (tmp_path / "audit.log").read_text() == "y"


def test_while_flare_runs_what_runs_stays_and_is_not_ended(tmp_path: Path) -> None:
    waits = [record(tmp_path, state, age=999) for state in ("RUNNING", "DISPATCHED", "SUBMITTED", "APPROVED")]
    ending = record(tmp_path, "FINISHED:COMPLETED", age=998)  # its process writes what is left
    over = [record(tmp_path, "FINISHED:COMPLETED", age) for age in range(cleanup.MAX_KEPT_JOBS + 1)]
    for folder in (*waits, ending, over[-1]):
        (tmp_path / folder.name).mkdir()
        os.utime(tmp_path / folder.name, (1.0, 1.0))
    for _ in range(cleanup.MAX_KEPT_JOBS):
        (tmp_path / str(uuid.uuid4())).mkdir()

    cleanup.sweep(tmp_path, {ending.name, "-m"})

    assert all(folder.is_dir() for folder in (*waits, ending, *over[:-1]))
    assert [status(folder) for folder in waits] == ["RUNNING", "DISPATCHED", "SUBMITTED", "APPROVED"]
    assert all((tmp_path / folder.name).is_dir() for folder in (*waits, ending))
    assert not over[-1].exists()
    assert not (tmp_path / over[-1].name).exists()


def test_temporary_files_are_the_owners_and_go_when_nobody_can_want_them(tmp_path: Path) -> None:
    folder = cleanup.temporary(tmp_path)
    assert folder.stat().st_mode & 0o777 == 0o700
    for name in ("new", "old"):
        (folder / name).write_text("a job that was refused")
    (folder / "old-folder").mkdir()
    long_ago = time.time() - cleanup.MAX_TEMPORARY_AGE_S - 1
    for name in ("old", "old-folder"):
        os.utime(folder / name, (long_ago, long_ago))
    cleanup.sweep(tmp_path, ())
    assert [entry.name for entry in folder.iterdir()] == ["new"]
    cleanup.tidy(tmp_path)  # nobody runs
    assert not folder.exists()
    assert cleanup.temporary(tmp_path) == folder


def test_a_full_disk_costs_neither_the_former_log_nor_the_cleaning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: object, to: Path) -> None:
        to.write_text("as much as there was room for")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(cleanup, "MAX_AUDIT_BYTES", 10)
    monkeypatch.setattr(cleanup, "MAX_TEMPORARY_AGE_S", -1.0)
    monkeypatch.setattr(cleanup.shutil, "copy", full)
    (tmp_path / "audit.log").write_text("x" * 11)
    (tmp_path / "audit.log.1").write_text("before")
    (cleanup.temporary(tmp_path) / "a").write_text("what a job left")
    with pytest.raises(OSError, match="No space"):
        cleanup.sweep(tmp_path, ())
    assert (tmp_path / "audit.log").read_text() == "x" * 11
    assert (tmp_path / "audit.log.1").read_text() == "before"
    assert not (tmp_path / "audit.log.new").exists()  # the rest of the room is not ours
    assert not any(cleanup.temporary(tmp_path).iterdir())
    cleanup.tidy(tmp_path)  # which keeps nobody from starting


def test_a_full_disk_does_not_keep_flare_from_starting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise FolderError("the disk is full")

    monkeypatch.setattr(cleanup, "write_atomic", full)
    folder = record(tmp_path, "RUNNING")
    cleanup.tidy(tmp_path)
    assert status(folder) == "RUNNING"
