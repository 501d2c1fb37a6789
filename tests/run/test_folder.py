"""The run folder: taken once, locked, and whole after a death at any byte."""

import errno
import json
import os
import re
import stat
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shepherd.errors import FolderError
from shepherd.io import private
from shepherd.io.atomic import write_atomic
from shepherd.machine.plan import PLAN
from shepherd.overrides import dump, parse
from shepherd.run import folder
from shepherd.run.log import LOG, append_row, read_rows
from shepherd.run.versions import changed_versions, versions
from shepherd.ui import report

SETTINGS = parse({"model": {"base": "tiny"}, "data": {"source": "world"}, "seed": 7})


def row(number: int) -> dict[str, object]:
    return {
        "round": number,
        "loss": 3.0 - number / 10,
        "heldout": {"loss": 2.5, "category": {"open_qa": 2.0}},
    }


def test_create_writes_the_run_file_and_the_versions(tmp_path: Path) -> None:
    made = folder.create(tmp_path / "runs" / "one", SETTINGS)
    assert (made.path / "run.toml").read_text() == dump(SETTINGS)
    assert folder.read_settings(made.path) == SETTINGS
    recorded = json.loads((made.path / "versions.json").read_text())
    assert recorded["numpy"] == np.__version__
    assert recorded["python"] == ".".join(map(str, sys.version_info[:3]))


def test_the_plan_is_there_before_the_folder_is_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest, written = write_atomic, list[str]()

    def spy(path: Path, content: str | bytes) -> Path:
        written.append(path.name)
        return honest(path, content)

    monkeypatch.setattr(folder, "write_atomic", spy)
    made = folder.create(tmp_path / "run", SETTINGS, "a plan")
    assert (made.path / PLAN).read_text() == "a plan"
    assert written.index(PLAN) < written.index(folder.RUN_FILE) == len(written) - 1
    made.close()


def test_an_empty_folder_is_fine_and_so_is_one_where_a_run_died_before_its_run_file(
    tmp_path: Path,
) -> None:
    for leftover in (".lock", "versions.json", "plan.json", "silos.json", "run.toml.tmp"):
        (tmp_path / leftover).write_text("")
    folder.create(tmp_path, SETTINGS).close()
    assert folder.read_settings(tmp_path) == SETTINGS


def test_another_run_is_refused_and_untouched(tmp_path: Path) -> None:
    folder.create(tmp_path, SETTINGS).close()
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    with pytest.raises(FolderError, match=r"holds another run; .*shepherd resume .*, or set output"):
        folder.create(tmp_path, SETTINGS)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


def test_a_folder_with_other_files_is_refused_without_leaving_a_trace(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(FolderError, match=r"not empty \(it holds thesis\.tex\)"):
        folder.create(tmp_path, SETTINGS)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_folder_can_be_asked_for_before_anything_is_prepared(tmp_path: Path) -> None:
    folder.require_free(tmp_path)
    folder.require_free(tmp_path / "new")
    folder.create(tmp_path, SETTINGS).close()
    with pytest.raises(FolderError, match="holds another run"):
        folder.require_free(tmp_path)


def test_a_file_in_the_way_is_named(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    with pytest.raises(FolderError, match="taken cannot be used"):
        folder.create(tmp_path / "taken", SETTINGS)


def test_a_second_process_is_kept_out_until_the_first_dies(tmp_path: Path) -> None:
    folder.create(tmp_path, SETTINGS).close()
    holder = (
        "import sys; from shepherd.run import folder; folder.reopen(sys.argv[1])\n"
        "print('held', flush=True); input()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", holder, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        with pytest.raises(FolderError, match="another process is running in"):
            folder.reopen(tmp_path)
        process.kill()
    folder.reopen(tmp_path).close()


@pytest.mark.parametrize("content", [None, "seed = [", "sed = 1\n"])
def test_a_folder_that_is_not_a_run_or_a_damaged_one_is_named(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "run.toml").write_text(content)
    with pytest.raises(FolderError, match=str(tmp_path)):
        folder.reopen(tmp_path)
    assert not (tmp_path / ".lock").exists()


def test_rows_come_back_as_plain_json(tmp_path: Path) -> None:
    made = folder.create(tmp_path, SETTINGS)
    made.append(
        {
            "round": 0,
            "loss": np.float32(0.5),
            "cohort": ("a", "b"),
            "gap": float("nan"),
            "n": np.int64(3),
        }
    )
    assert read_rows(tmp_path) == [{"round": 0, "loss": 0.5, "cohort": ["a", "b"], "gap": None, "n": 3}]


def test_reconcile_cuts_what_will_be_run_again_and_leaves_a_good_log_alone(tmp_path: Path) -> None:
    made = folder.create(tmp_path, SETTINGS)
    for number in range(5):
        made.append(row(number))
    before = (tmp_path / "rounds.jsonl").stat().st_ino
    assert made.reconcile(4, row(4)) == [row(n) for n in range(5)]
    assert (tmp_path / "rounds.jsonl").stat().st_ino == before
    assert made.reconcile(2) == [row(n) for n in range(3)] == read_rows(tmp_path)


def test_a_damaged_line_inside_the_log_is_named(tmp_path: Path) -> None:
    made = folder.create(tmp_path, SETTINGS)
    (tmp_path / "rounds.jsonl").write_text('{"round": 0}\n{"roun\n{"round": 2}\n')
    with pytest.raises(FolderError, match=r"line 2 of .*rounds\.jsonl is not a round"):
        made.reconcile(2)


def _append_partly(path: Path, number: int, share: float) -> None:
    line = (json.dumps(row(number)) + "\n").encode()
    with open(path / "rounds.jsonl", "ab") as log:
        log.write(line[: round(share * len(line))])


@settings(deadline=None, max_examples=60)
@given(
    deaths=st.lists(
        st.tuples(st.integers(1, 6), st.sampled_from(["log", "checkpoint"]), st.floats(0, 1)), max_size=6
    ),
    log_first=st.booleans(),
)
def test_each_round_is_in_the_log_once_wherever_the_process_died(
    deaths: list[tuple[int, str, float]], log_first: bool
) -> None:
    """A run of six rounds with deaths at chosen points; the checkpoint is an integer written at once."""
    with tempfile.TemporaryDirectory() as name:
        made, saved, pending = folder.RunFolder(Path(name), lock=-1), 0, list(deaths)
        made.append(row(0))
        while saved < 6:
            made.reconcile(saved, row(saved))
            saved = _run_until_death(made, saved, pending, log_first)
        assert made.reconcile(6, row(6)) == [row(n) for n in range(7)] == read_rows(name)


def _run_until_death(
    made: folder.RunFolder, saved: int, pending: list[tuple[int, str, float]], log_first: bool
) -> int:
    """The saved round at the end or at the next pending death."""
    for number in range(saved + 1, 7):
        for step in ("log", "checkpoint") if log_first else ("checkpoint", "log"):
            dies = bool(pending) and pending[0][:2] == (number, step)
            share = pending.pop(0)[2] if dies else 1.0
            if step == "log" and dies:
                _append_partly(made.path, number, share)
            elif step == "log":
                made.append(row(number))
            elif not dies or share > 0.5:  # the rename came before or after the death
                saved = number
            if dies:
                return saved
        pending[:] = [death for death in pending if death[0] > number]
    return saved


def _full(*_: object) -> int:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_full_disk_is_one_sentence_and_leaves_the_old_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = folder.create(tmp_path, SETTINGS)
    made.append(row(0))
    monkeypatch.setattr(os, "fsync", _full)
    for attempt in (lambda: made.append(row(1)), lambda: made.write("run.toml", "other")):
        with pytest.raises(
            FolderError, match=r"the disk of .* is full; free some space, then `shepherd resume"
        ):
            attempt()
    monkeypatch.undo()
    assert folder.read_settings(tmp_path) == SETTINGS
    assert not list(tmp_path.glob("*.tmp"))


def test_a_row_that_did_not_fit_leaves_no_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = folder.create(tmp_path, SETTINGS)
    made.append(row(0))
    write = os.write
    halves = iter([lambda handle, data: write(handle, data[:10]), _full])
    monkeypatch.setattr(os, "write", lambda handle, data: next(halves)(handle, data))
    with pytest.raises(FolderError, match="full"):
        made.append(row(1))
    monkeypatch.undo()
    assert (tmp_path / "rounds.jsonl").read_bytes() == (json.dumps(row(0)) + "\n").encode()


def test_a_vanished_folder_is_a_sentence(tmp_path: Path) -> None:
    made = folder.create(tmp_path / "run", SETTINGS)
    made.close()
    for entry in made.path.iterdir():
        entry.unlink()
    made.path.rmdir()
    with pytest.raises(FolderError, match="cannot be used"):
        made.append(row(0))


def test_changed_versions_names_what_differs(tmp_path: Path) -> None:
    folder.create(tmp_path, SETTINGS).close()
    assert changed_versions(tmp_path) == {}
    recorded = versions()
    (tmp_path / "versions.json").write_text(json.dumps({**recorded, "numpy": "1.0"}))
    assert changed_versions(tmp_path) == {"numpy": ("1.0", np.__version__)}


def open_to_others(path: Path) -> list[str]:
    """What in a folder, itself first, other users of the machine could read, list or change."""
    return [str(each) for each in (path, *path.rglob("*")) if each.stat().st_mode & 0o077]


@pytest.fixture
def usual_umask() -> Iterator[None]:
    before = os.umask(0o022)
    yield
    os.umask(before)


def test_a_run_folder_is_its_owners_alone(usual_umask: None, tmp_path: Path) -> None:
    path = tmp_path / "runs" / "one"
    folder.require_free(path)
    made = folder.create(path, SETTINGS, "{}")
    made.append(row(0))
    made.append(row(1))
    made.reconcile(0)
    made.close()
    folder.reopen(path).close()
    assert open_to_others(path) == []
    assert stat.S_IMODE(path.stat().st_mode) == 0o700
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o755  # what is above it is as usual


def test_an_empty_folder_that_was_there_is_taken_from_others(usual_umask: None, tmp_path: Path) -> None:
    path = tmp_path / "run"
    path.mkdir(0o755)
    folder.create(path, SETTINGS).close()
    assert open_to_others(path) == []


def test_an_old_folder_stays_as_it_is_and_its_owner_is_told(
    usual_umask: None, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "run"
    folder.create(path, SETTINGS).close()
    assert caplog.messages == []
    path.chmod(0o755)
    folder.reopen(path).close()
    assert stat.S_IMODE(path.stat().st_mode) == 0o755
    assert f"chmod -R go= {path}" in caplog.text


def test_folders_within_are_made_for_their_owner_alone(usual_umask: None, tmp_path: Path) -> None:
    private.make(tmp_path / "a" / "b" / "c")
    private.make(tmp_path / "a" / "b" / "c")
    assert open_to_others(tmp_path / "a") == []
    (tmp_path / "file").touch()
    with pytest.raises(FileExistsError):
        private.make(tmp_path / "file")


def test_two_writers_of_one_file_never_meet(tmp_path: Path) -> None:
    """Each sees its own file whole, and what is left is one of them."""
    texts = [str(n) * 100_000 for n in range(4)]
    faults: list[Exception] = []

    def write(text: str) -> None:
        try:
            for _ in range(20):
                write_atomic(tmp_path / "comparison.json", text)
        except Exception as error:
            faults.append(error)

    threads = [threading.Thread(target=write, args=(text,)) for text in texts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert faults == []
    assert (tmp_path / "comparison.json").read_text() in texts
    assert [path.name for path in tmp_path.iterdir()] == ["comparison.json"]


def test_what_a_killed_writer_left_is_swept(tmp_path: Path) -> None:
    path = tmp_path / "run"
    path.mkdir()
    for leftover in (".run.toml-abc.tmp", ".versions.json-x.tmp", "run.toml.tmp"):
        (path / leftover).write_text("half")
    folder.create(path, SETTINGS).close()
    (path / ".rounds.jsonl-y.tmp").write_text("half")
    folder.reopen(path).close()
    assert not list(path.glob("*.tmp"))
    assert not list(path.glob(".*.tmp"))


@pytest.mark.parametrize(
    "name",
    [".lock", "rounds.jsonl", "adapter", "checkpoints", "data", "run.toml", "finished.json", "answers.jsonl",
     "compare/comparison.json", "compare/seed-0/local", "checkpoints/round-00001", "data/gone"],
)  # fmt: skip
def test_a_link_in_a_run_folder_is_refused_by_name(tmp_path: Path, name: str) -> None:
    run, mine = tmp_path / "run", tmp_path / "mine"
    folder.create(run, SETTINGS).close()
    link = run / name
    link.parent.mkdir(parents=True, exist_ok=True)
    if link.exists():
        link.rename(mine)
    link.symlink_to(mine)
    there = mine.exists()
    for take in (folder.reopen, folder.read_settings):
        with pytest.raises(FolderError, match=rf"{re.escape(str(link))} is a symbolic link.* remove it"):
            take(run)
    assert mine.exists() == there


def test_links_are_looked_for_once_and_whenever_a_folder_is_taken(tmp_path: Path, monkeypatch) -> None:
    run = tmp_path / "run"
    folder.create(run, SETTINGS).close()
    (run / "checkpoints").mkdir()
    looked: list[str] = []
    honest = os.walk
    monkeypatch.setattr(os, "walk", lambda path: looked.append(str(path)) or honest(path))
    for _ in range(3):
        folder.read_settings(run)
        folder.is_finished(run)
        report.collect(run)
        append_row(run, row(1))
    assert looked == [str(run)]
    folder.reopen(run).close()
    assert looked == [str(run)] * 2
    folder.read_settings(run)
    assert len(looked) == 2
    (run / "data").symlink_to(tmp_path)
    with pytest.raises(FolderError, match="data is a symbolic link"):
        folder.reopen(run)


def test_another_folder_in_the_place_of_one_is_looked_at_anew(tmp_path: Path) -> None:
    """Made of the same files, even: a hard link brings the run file's own number with it."""
    run, other = tmp_path / "run", tmp_path / "other"
    folder.create(run, SETTINGS).close()
    other.mkdir()
    os.link(run / "run.toml", other / "run.toml")
    folder.read_settings(run)
    (other / "data").symlink_to(tmp_path)
    run.rename(tmp_path / "old")
    other.rename(run)
    for _ in range(2):
        with pytest.raises(FolderError, match="data is a symbolic link"):
            folder.read_settings(run)


def test_a_run_folder_may_be_a_link_itself_and_wandb_links_its_newest_run(tmp_path: Path) -> None:
    folder.create(tmp_path / "run", SETTINGS).close()
    (tmp_path / "run" / "wandb").mkdir()
    (tmp_path / "run" / "wandb" / "latest-run").symlink_to("run-1")
    (tmp_path / "link").symlink_to(tmp_path / "run")
    folder.reopen(tmp_path / "link").close()


def test_nothing_is_written_through_a_link(tmp_path: Path) -> None:
    for name in (LOG, folder.LOCK):
        (tmp_path / name).symlink_to(tmp_path / "mine")
    with pytest.raises(FolderError, match=r"rounds\.jsonl cannot be used"):
        append_row(tmp_path, row(1))
    (tmp_path / LOG).unlink()
    with pytest.raises(FolderError, match=r"\.lock cannot be used"):
        folder.create(tmp_path, SETTINGS)
    assert not (tmp_path / "mine").exists()
