"""What may change in the settings of a run that has begun."""

from __future__ import annotations

import json
import logging
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from shepherd.core import Mechanism, Spending, chain
from shepherd.errors import FolderError, SettingsError, ShepherdError
from shepherd.model import files
from shepherd.overrides import plain
from shepherd.run import changes, folder
from shepherd.run.log import read_rows
from shepherd.run.opening import open_run
from shepherd.run.resuming import resume
from shepherd.run.run import Run
from shepherd.settings import RunSettings
from tests import runs


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return runs.written(tmp_path_factory.mktemp("data") / "rows.jsonl")


@pytest.fixture
def table(llama_folder: Path, source: Path, tmp_path: Path) -> RunSettings:
    return runs.settings(llama_folder, source, tmp_path / "run")


@pytest.fixture(scope="module")
def begun(llama_folder: Path, source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of three rounds that was stopped after the first."""
    path = tmp_path_factory.mktemp("begun") / "run"
    with open_run(runs.settings(llama_folder, source, path)) as run:
        next(run.rounds())
    return path


def finish(run: Run) -> bytes:
    for _ in run.rounds():
        pass
    return (run.finish()["adapter"] / files.WEIGHTS).read_bytes()


def edit(path: Path, key: str, value: object) -> None:
    """Change one key of a run folder's run file as a person would with an editor."""
    tables = plain(folder.read_settings(path))
    *parents, last = key.split(".")
    inner = tables
    for parent in parents:
        inner = inner[parent]
    inner[last] = value
    (path / folder.RUN_FILE).write_text(folder.dump(RunSettings.model_validate(tables)))


CHANGES = [
    ("tuning.learning_rate", 0.5), ("algorithm.name", "fedprox"), ("adapter.rank", 3), ("adapter.alpha", 7.0),
    ("seed", 5), ("data.template", "alpaca"), ("data.source", "elsewhere.jsonl"), ("split.clients", 3),
    ("selection.share", 0.25), ("aggregation.name", "median"), ("server.name", "adam"),
    ("evaluation.every", 2), ("machine.threads", 2), ("federation.quorum", 0.1), ("output", "elsewhere"),
]  # fmt: skip


@pytest.mark.parametrize(("key", "value"), CHANGES, ids=lambda it: str(it))
def test_an_edit_that_rounds_depend_on_is_refused_by_its_key(begun, tmp_path, key, value) -> None:
    path = Path(shutil.copytree(begun, tmp_path / "run"))
    edit(path, key, value)
    with pytest.raises(FolderError, match=rf"run\.toml was edited: {key} changed since the run began"):
        resume(path)
    edit(path, key, _old(begun, key))
    assert changes.continued(path) == folder.read_settings(begun)


@pytest.mark.parametrize(("key", "value"), CHANGES, ids=lambda it: str(it))
def test_an_override_that_rounds_depend_on_is_refused_by_its_key(begun, key, value) -> None:
    before = (begun / folder.RUN_FILE).read_bytes()
    with pytest.raises(SettingsError, match=rf"{key}=.* cannot be changed in .*; `resume` can only raise"):
        resume(begun, overrides=[f"{key}={json.dumps(value)}"])
    assert (begun / folder.RUN_FILE).read_bytes() == before


def _old(path: Path, key: str) -> object:
    found = plain(folder.read_settings(path))
    for part in key.split("."):
        found = found[part]
    return found


def test_all_keys_that_were_edited_are_named(begun, tmp_path) -> None:
    path = Path(shutil.copytree(begun, tmp_path / "run"))
    edit(path, "tuning.learning_rate", 0.5)
    edit(path, "algorithm.name", "fedprox")
    with pytest.raises(FolderError, match=r"tuning\.learning_rate and algorithm\.name changed"):
        resume(path)


def test_an_edit_before_the_first_round_is_refused_as_well(table, llama_folder) -> None:
    open_run(table).close()
    path = Path(table.output)
    edit(path, "data.template", "alpaca")
    with pytest.raises(FolderError, match=r"data\.template changed"):
        resume(path)
    edit(path, "data.template", "plain")
    edit(path, "model.base", str(llama_folder) + "/.")  # no checkpoint can tell whether it is the same yet
    with pytest.raises(FolderError, match=r"model\.base changed"):
        resume(path)


def test_what_no_number_depends_on_may_change(begun, tmp_path) -> None:
    path = Path(shutil.copytree(begun, tmp_path / "run"))
    edit(path, "judge.model", "somebody")
    kept = changes.continued(path, ["checkpoints.keep=1", "tracking.project=mine"])
    assert (kept.judge.model, kept.checkpoints.keep, kept.tracking.project) == ("somebody", 1, "mine")


def test_a_run_gets_more_rounds_with_the_bits_of_a_longer_run(table, tmp_path, caplog) -> None:
    caplog.set_level(logging.INFO)
    longer = table.federation.model_copy(update={"rounds": 5})
    whole = table.model_copy(update={"output": str(tmp_path / "whole"), "federation": longer})
    with open_run(table) as run:
        finish(run)
    path = Path(table.output)
    assert folder.is_finished(path)
    extended = finish(resume(path, overrides=["federation.rounds=5"]))
    assert extended == finish(open_run(whole))
    assert [row["round"] for row in read_rows(path)] == [0, 1, 2, 3, 4, 5]
    assert "the run has 5 rounds instead of 3" in caplog.messages
    assert folder.read_settings(path).federation.rounds == 5
    assert folder.is_finished(path)
    resume(path).close()  # the longer run is the run now


def test_rounds_raised_in_the_run_file_are_more_rounds_too(begun, tmp_path) -> None:
    path = Path(shutil.copytree(begun, tmp_path / "run"))
    edit(path, "federation.rounds", 4)
    run = resume(path)
    assert run.until == 4
    run.close()
    with pytest.raises(SettingsError, match=r"federation\.rounds=3 is fewer than the 4 rounds"):
        resume(path, overrides=["federation.rounds=3"])


def test_a_kill_between_the_two_files_loses_nothing(begun, tmp_path) -> None:
    path = Path(shutil.copytree(begun, tmp_path / "run"))
    old = (path / folder.TRAINED_WITH).read_bytes()
    resume(path, overrides=["federation.rounds=4"]).close()
    (path / folder.TRAINED_WITH).write_bytes(old)
    run = resume(path)
    assert run.until == 4
    run.close()


def test_a_schedule_over_the_rounds_is_named_when_it_changes_on_the_way(
    llama_folder, source, tmp_path
) -> None:
    table = runs.settings(llama_folder, source, tmp_path / "run", tuning={"round_schedule": "cosine"})
    open_run(table).close()
    longer = changes.continued(tmp_path / "run", ["federation.rounds=9"])
    said = changes.remark(longer, tmp_path / "run")
    assert "over 3, the others follow it over 9" in said
    assert changes.remark(table, tmp_path / "run") == ""


def spending(sampling, rounds):
    return Spending(noise=1.0, sampling=sampling, steps=rounds)


def test_a_run_whose_noise_was_set_for_its_rounds_gets_no_more(begun) -> None:
    noisy = replace(chain(), mechanism=Mechanism(spent=spending))
    with resume(begun) as run:
        method = replace(run.method, transform=noisy)
    with pytest.raises(SettingsError, match=r"federation\.rounds cannot be raised"):
        changes.require_extendable(method)


def test_a_folder_of_an_earlier_version_goes_on_and_is_known_from_then(begun, tmp_path) -> None:
    path = Path(shutil.copytree(begun, tmp_path / "run"))
    (path / folder.TRAINED_WITH).unlink()
    resume(path).close()
    edit(path, "seed", 9)
    with pytest.raises(FolderError, match="seed changed"):
        resume(path)


@pytest.mark.parametrize("content", ["", "[", "model = 3", "\\x00"])
def test_a_damaged_file_is_named(begun, tmp_path, content) -> None:
    path = Path(shutil.copytree(begun, tmp_path / "run"))
    (path / folder.TRAINED_WITH).write_text(content)
    with pytest.raises(ShepherdError, match=r"trained-with\.toml is damaged"):
        resume(path)
