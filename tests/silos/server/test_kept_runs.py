"""What a server keeps of its runs, listed and deleted; the kit is a real one, the runs are folders."""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Iterator
from io import StringIO
from pathlib import Path

import pytest

pytest.importorskip("nvflare")

from tests.silos.flare import federations

from shepherd.errors import SilosError
from shepherd.run import folder
from shepherd.run.log import LOG, append_row
from shepherd.silos.flare.cleanup import JOBS
from shepherd.silos.flare.controller import SUBMITTER
from shepherd.silos.flare.job import _name
from shepherd.silos.server import kept_runs
from shepherd.ui.terminal.federation_tables import print_kept_runs

RUNS = ("1" * 16, "2" * 16, "3" * 16)
JOB = "0f0f0f0f-0000-4000-8000-00000000000{}"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return federations.made(tmp_path_factory.mktemp("kept") / "f")


@pytest.fixture
def server(made: Path, tmp_path: Path) -> Path:
    """Three runs: of thirty days ago, of two days ago, and of now."""
    kit = federations.copied(made / "server", tmp_path / "server")
    for number, (run, days) in enumerate(zip(RUNS, (30, 2, 0), strict=True)):
        home = kit / "shepherd" / "runs" / run
        (home / "checkpoints" / "round-00001").mkdir(parents=True)
        (home / "checkpoints" / "round-00001" / "state.json").write_bytes(b"x" * 1000 * (number + 1))
        (home / SUBMITTER).write_text("ada@shepherd.local")
        for round_ in range(number + 1):
            append_row(home, {"round": round_})
        os.utime(home / LOG, (time.time() - days * kept_runs.DAY_S,) * 2)
    return kit


@pytest.fixture
def held(server: Path) -> Iterator[Path]:
    """A process goes through the rounds of the first run."""
    home = server / "shepherd" / "runs" / RUNS[0]
    handle = os.open(home / folder.LOCK, os.O_RDWR | os.O_CREAT)
    fcntl.flock(handle, fcntl.LOCK_EX)
    yield home
    os.close(handle)


def waiting(server: Path, run: str, status: str) -> None:
    record = server / JOBS / JOB.format(1)
    record.mkdir(parents=True)
    (record / "meta").write_text(json.dumps({"name": _name(run), "status": status}))


def test_what_is_kept_is_listed_the_oldest_first(server: Path) -> None:
    found = kept_runs.list_runs(server)
    assert [run.run for run in found] == list(RUNS)
    assert [run.round for run in found] == [0, 1, 2]
    assert [round(run.idle_s / kept_runs.DAY_S) for run in found] == [30, 2, 0]
    assert {run.submitter for run in found} == {"ada@shepherd.local"}
    assert all(run.bytes > 1000 * (number + 1) for number, run in enumerate(found))
    assert not any(run.active for run in found)
    stream = StringIO()
    print_kept_runs(found, stream)
    assert "3 runs" in stream.getvalue()
    assert "ada@shepherd.local" in stream.getvalue()


def test_what_is_deleted_is_gone_and_nothing_else(server: Path) -> None:
    assert kept_runs.delete(server, [RUNS[0]]) > 1000
    assert [run.run for run in kept_runs.list_runs(server)] == [RUNS[1], RUNS[2]]
    assert sorted(path.name for path in (server / "shepherd" / "runs").iterdir()) == [RUNS[1], RUNS[2]]


def test_what_a_kill_left_of_a_deletion_is_swept(server: Path) -> None:
    left = server / "shepherd" / "runs" / f"{kept_runs.DELETED_PREFIX}x"
    left.mkdir()
    assert len(kept_runs.list_runs(server)) == 3
    kept_runs.delete(server, [RUNS[1]])
    assert not left.exists()


def test_a_run_that_a_process_goes_through_is_never_deleted(server: Path, held: Path) -> None:
    (first, *_) = kept_runs.list_runs(server)
    assert first.active
    assert kept_runs.idle_runs([first], 1) == []
    with pytest.raises(SilosError, match=f"run {RUNS[0]} is under way; stop it first"):
        kept_runs.delete(server, [RUNS[1], RUNS[0]])
    with pytest.raises(SilosError, match="is under way"):
        kept_runs._delete(held)  # it began after it was looked at
    assert len(kept_runs.list_runs(server)) == 3


@pytest.mark.parametrize("status", ["SUBMITTED", "APPROVED", "DISPATCHED", "RUNNING"])
def test_a_run_whose_job_waits_is_under_way(server: Path, status: str) -> None:
    waiting(server, RUNS[0], status)
    assert [run.active for run in kept_runs.list_runs(server)] == [True, False, False]
    assert kept_runs.idle_runs(kept_runs.list_runs(server), 1) == [RUNS[1]]


def test_a_run_whose_jobs_are_over_is_not(server: Path) -> None:
    waiting(server, RUNS[0], "FINISHED:COMPLETED")
    assert kept_runs.idle_runs(kept_runs.list_runs(server), 1) == [RUNS[0], RUNS[1]]


@pytest.mark.parametrize("name", ["9" * 16, "..", ".", "", "../../etc"])
def test_a_run_that_is_not_there_is_said(server: Path, name: str) -> None:
    with pytest.raises(SilosError, match="keeps no run"):
        kept_runs.delete(server, [name])
    assert len(kept_runs.list_runs(server)) == 3


def test_a_server_that_has_not_run_keeps_nothing(made: Path) -> None:
    assert kept_runs.list_runs(made) == []


def test_a_damaged_log_can_be_deleted(server: Path) -> None:
    (server / "shepherd" / "runs" / RUNS[0] / LOG).write_text("{}\n{}\n")
    assert kept_runs.list_runs(server)[-1].round == 0
    kept_runs.delete(server, [RUNS[0]])
