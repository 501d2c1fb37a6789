"""What a stopped command says: how far it came and how to continue."""

from __future__ import annotations

from pathlib import Path

import pytest

from shepherd.overrides import parse
from shepherd.run import folder
from shepherd.ui.terminal.train import stop_message


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run folder with one finished round."""
    monkeypatch.chdir(tmp_path)
    settings = parse({"model": {"base": "tiny"}, "data": {"source": "world"}})
    holder = folder.create("my run", settings)
    holder.append({"round": 0})
    holder.append({"round": 1})
    holder.close()
    return Path("my run")


def test_before_a_run_there_is_nothing_to_continue(tmp_path: Path) -> None:
    assert stop_message(tmp_path) == "stopped before the run began"


def test_a_run_is_continued_by_resume(run: Path) -> None:
    assert stop_message(run) == "stopped after round 1; continue with: shepherd resume 'my run'"


def test_a_comparison_is_continued_by_the_same_command(run: Path) -> None:
    assert stop_message(run, "compare") == (
        "stopped after round 1; what is finished is kept: give the same command again to continue"
    )
