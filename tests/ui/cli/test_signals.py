"""A run in worker processes that is asked to stop: one sentence, and nothing left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
from tests import runs

from shepherd.overrides import dump
from shepherd.run.log import read_rows


def test_workers_leave_nothing_behind_when_their_run_is_stopped(llama_folder: Path, tmp_path: Path) -> None:
    source = runs.written(tmp_path / "rows.jsonl")
    machine = {"workers": 2, "threads": 2, "stack_size": 1}
    settings = runs.settings(
        llama_folder, source, tmp_path / "run", machine=machine, federation={"rounds": 10**6}
    )
    (tmp_path / "run.toml").write_text(dump(settings))
    with subprocess.Popen(
        [sys.executable, "-m", "shepherd", "run", "run.toml"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        while len(read_rows(tmp_path / "run") if (tmp_path / "run" / "rounds.jsonl").exists() else []) < 3:
            assert process.stdout.readline(), process.stderr.read()
        workers = psutil.Process(process.pid).children(recursive=True)
        assert len(workers) >= 2
        os.killpg(process.pid, signal.SIGTERM)  # as a scheduler does
        _, said = process.communicate(timeout=120)
    assert process.returncode == 143
    assert said.startswith("shepherd: stopped after round ")
    assert len(said.splitlines()) == 1  # nor a word of leaked semaphores
    assert psutil.wait_procs(workers, timeout=30)[1] == []
