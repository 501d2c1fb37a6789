from __future__ import annotations

import json
import os
import uuid
from pathlib import Path

import pytest
from nvflare.apis.job_def import RunStatus

from shepherd.errors import FolderError
from shepherd.federation.nvflare import leftovers


def record(kit: Path, status: str, age: int = 0) -> Path:
    folder = kit / leftovers.JOBS / str(uuid.uuid4())
    folder.mkdir(parents=True)
    (folder / "meta").write_text(json.dumps({"status": status, "name": "x"}))
    os.utime(folder, (1e9 - age, 1e9 - age))
    return folder


def status(folder: Path) -> str:
    return str(json.loads((folder / "meta").read_text())["status"])


def test_the_words_are_flares_own() -> None:
    assert RunStatus.ABANDONED == leftovers.ABANDONED
    assert {RunStatus.RUNNING.value, RunStatus.DISPATCHED.value} == leftovers._UNFINISHED
    assert {RunStatus.SUBMITTED.value, RunStatus.APPROVED.value} == leftovers._WAITING


def test_a_job_that_was_cut_off_is_ended_and_the_others_are_left(tmp_path: Path) -> None:
    states = ["RUNNING", "DISPATCHED", "SUBMITTED", "FINISHED:COMPLETED"]
    folders = [record(tmp_path, state) for state in states]
    leftovers.tidy(tmp_path)
    ended = leftovers.ABANDONED
    assert [status(folder) for folder in folders] == [ended, ended, "SUBMITTED", "FINISHED:COMPLETED"]
    assert json.loads((folders[0] / "meta").read_text())["name"] == "x"


def test_the_newest_stay_and_so_does_all_that_waits_or_is_not_a_jobs(tmp_path: Path) -> None:
    over = [record(tmp_path, "FINISHED:COMPLETED", age) for age in range(leftovers.KEPT + 3)]
    waiting = record(tmp_path, "SUBMITTED", age=999)
    for n in range(leftovers.KEPT + 2):
        run = tmp_path / str(uuid.uuid4())
        run.mkdir()
        os.utime(run, (1e9 + n, 1e9 + n))
    for name in ("startup", "local", "shepherd", "00000000-not-a-job"):
        (tmp_path / name).mkdir()
    leftovers.tidy(tmp_path)
    assert [folder.is_dir() for folder in over] == [True] * leftovers.KEPT + [False] * 3
    assert waiting.is_dir()
    kept = {entry.name for entry in tmp_path.iterdir()}
    assert len(kept) == leftovers.KEPT + 5
    assert {"startup", "local", "shepherd", "00000000-not-a-job", "jobs"} <= kept


def test_a_damaged_record_and_an_empty_kit_do_no_harm(tmp_path: Path) -> None:
    leftovers.tidy(tmp_path)
    (record(tmp_path, "RUNNING") / "meta").write_text("{")
    leftovers.tidy(tmp_path)


def test_an_audit_log_that_has_grown_is_set_aside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leftovers, "MOST_AUDIT", 10)
    for content in ("x" * 10, "x" * 11):
        (tmp_path / "audit.log").write_text(content)
        leftovers.tidy(tmp_path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["audit.log.1"]
    assert (tmp_path / "audit.log.1").read_text() == "x" * 11


def test_a_full_disk_does_not_keep_flare_from_starting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise FolderError("the disk is full")

    monkeypatch.setattr(leftovers, "write_atomic", full)
    folder = record(tmp_path, "RUNNING")
    leftovers.tidy(tmp_path)
    assert status(folder) == "RUNNING"
