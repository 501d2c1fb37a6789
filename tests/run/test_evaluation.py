"""Scoring a run on a file: the numbers of its own rounds, what was trained on, and nothing written."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from click.testing import CliRunner

from shepherd.errors import DataError, FolderError, SettingsError
from shepherd.run.evaluation import evaluate_run
from shepherd.run.log import read_rows
from shepherd.run.opening import open_run
from shepherd.ui.cli.main import main
from tests import runs

NEW = runs.rows(12, seed=7)


@pytest.fixture(scope="module")
def file(tmp_path_factory) -> Path:
    return runs.written(tmp_path_factory.mktemp("test") / "test.jsonl", NEW)


@pytest.fixture(scope="module")
def run(llama_folder, file, tmp_path_factory) -> Path:
    """A finished run that scored the same file in its rounds."""
    output = tmp_path_factory.mktemp("evaluated") / "run"
    source = runs.written(tmp_path_factory.mktemp("data") / "rows.jsonl")
    settings = runs.settings(
        llama_folder, source, output, federation={"rounds": 1}, evaluation={"data": str(file)}
    )
    with open_run(settings) as opened:
        for _ in opened.rounds():
            pass
        opened.finish()
    return output


def everything(folder: Path) -> dict[str, tuple[int, bytes]]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path): (path.stat().st_mtime_ns, path.read_bytes()) for path in files}


def test_the_losses_are_those_of_the_runs_own_rounds(run, file) -> None:
    before, after = (row["heldout"] for row in read_rows(run))
    found = evaluate_run(run, file)
    assert found.examples == 12
    of = found.scored[0]
    assert (of.base.value, of.run.value) == pytest.approx((before["loss"], after["loss"]), rel=1e-5)
    for name, row in found.categories.items():
        assert (row["base"], row["run"]) == pytest.approx(
            (before["category"][name], after["category"][name]), rel=1e-5
        )
    assert of.run.low <= of.run.value <= of.run.high
    assert not any("trained on" in sentence for sentence in found.remarks)


def test_nothing_is_written_in_the_run_or_here(run, file, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    kept = everything(run)
    result = CliRunner().invoke(main, ["evaluate", str(run), "--data", str(file), "--answers", "2"])
    assert result.exit_code == 0, result.output
    assert "held-out loss" in result.output
    assert everything(run) == kept
    assert os.listdir(tmp_path) == []


def test_json_has_each_measure_with_its_interval(run, file) -> None:
    result = CliRunner().invoke(main, ["evaluate", str(run), "--data", str(file), "--answers", "3", "--json"])
    found = json.loads(result.stdout)
    assert [row["name"] for row in found["measures"]] == ["loss", "exact", "f1", "rouge_l"]
    assert [row["examples"] for row in found["measures"]] == [12, 3, 3, 3]
    assert all({"value", "low", "high"} == row["run"].keys() for row in found["measures"])
    assert sum(row["examples"] for row in found["categories"].values()) == 12
    assert len(found["says"]) == 4


def test_what_was_trained_on_is_said(run, tmp_path) -> None:
    """By the tokens in the run folder; the source need not be there any more."""
    old = runs.rows()
    mixed = runs.written(tmp_path / "mixed.jsonl", [*old[:3], {**old[4], "response": "w9 w9 w9"}, *NEW[:2]])
    said = " ".join(evaluate_run(run, mixed).remarks)
    assert "warning: 3 examples of the file were trained on" in said
    assert "warning: 1 example of the file shares a prompt with examples that were trained on" in said


@pytest.mark.parametrize("name", ["missing.jsonl", "."])
def test_a_file_that_is_none_is_refused_by_the_option(run, tmp_path, name) -> None:
    with pytest.raises(DataError, match=r"the file .* give a file of rows in --data"):
        evaluate_run(run, tmp_path / name)
    result = CliRunner().invoke(main, ["evaluate", str(run), "--data", str(tmp_path / name)])
    assert result.exit_code == 2
    assert "Traceback" not in result.output


def test_a_folder_without_a_run_and_a_round_that_is_not_kept_are_refused(run, file, tmp_path) -> None:
    with pytest.raises(FolderError):
        evaluate_run(tmp_path, file)
    with pytest.raises(FolderError, match="round 9"):
        evaluate_run(run, file, round=9)


def test_over_silos_a_test_set_is_refused_before_anything_is_made(tmp_path, file) -> None:
    from shepherd.silos.coordinator import coordinate

    settings = runs.settings(Path("tiny"), "world", tmp_path / "run", evaluation={"data": str(file)})
    with pytest.raises(SettingsError, match="shepherd evaluate RUN_FOLDER"):
        coordinate.open_run(settings, tmp_path / "kit")
    assert not (tmp_path / "run").exists()
