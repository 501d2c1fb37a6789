"""What a command that only reads leaves on the disk: nothing, neither where it was called nor in the run."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from tests import runs

from shepherd.run.opening import open_run
from shepherd.ui.cli import main as cli


def files(folder: Path) -> Mapping[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
        for path in folder.rglob("*")
    }


@pytest.fixture(scope="module")
def place(llama_folder: Path, tmp_path_factory: Any) -> Path:
    """A folder with a finished run, its data and its run file."""
    place: Path = tmp_path_factory.mktemp("writes")
    source = runs.written(place / "rows.jsonl")
    settings = runs.settings(llama_folder, source, place / "run", federation={"rounds": 1})
    with open_run(settings) as run:
        for _ in run.rounds():
            pass
        run.finish()
    (place / "run.toml").write_bytes((place / "run" / "run.toml").read_bytes())
    (place / "prompts.txt").write_text("w4 w5\nw6\n")
    return place


@pytest.mark.parametrize(
    "words",
    [
        "generate run w5",
        "generate run --prompts prompts.txt --json",
        "generate run w5 --base",
        "resume run",
        "data check run.toml",
        "data split run.toml",
        "plugins",
    ],
)
def test_it_writes_nothing(place: Path, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    before = files(place)
    result = CliRunner().invoke(cli.main, words.split())
    assert result.exit_code == 0, result.output
    assert files(place) == before
