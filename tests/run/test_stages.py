"""Stages: where they are, what begins them, and noise in more than one of them."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from shepherd.errors import DataError, FolderError, SettingsError
from shepherd.overrides import dump, parse, plain
from shepherd.run import folder, stages
from shepherd.run.inspection import inspect_data
from shepherd.run.opening import open_run
from shepherd.settings import RunSettings
from shepherd.ui.cli.main import main
from tests import runs

NOISE = [{"name": "gaussian", "norm": 1.0, "noise": 1.0}]


@pytest.fixture
def table(llama_folder, tmp_path) -> dict[str, Any]:
    """One round over all of four clients; nothing of it is a stage yet."""
    source = runs.written(tmp_path / "rows.jsonl")
    tables = {"federation": {"rounds": 1, "weights": "equal"}, "tuning": {"max_steps": 1}}
    return plain(runs.settings(llama_folder, source, tmp_path / "run", selection={"share": 1.0}, **tables))


def staged(table: dict[str, Any], *given: dict[str, Any]) -> RunSettings:
    return parse({**table, "stages": list(given)})


def written(place: Path, settings: RunSettings) -> str:
    (place / "run.toml").write_text(dump(settings))
    return str(place / "run.toml")


def first_trained(settings: RunSettings) -> None:
    """Train the first stage to its end, and no other."""
    stages.begin(settings)
    with open_run(stages.settings_of(settings)[0]) as run:
        for _ in run.rounds():
            pass
        run.finish(answer=False)


@pytest.mark.parametrize(
    ("one", "two"),
    [
        ({"transforms": NOISE}, {"transforms": NOISE}),
        ({"transforms": NOISE}, {"privacy": {"examples": {"norm": 1.0, "noise": 1.0}}}),
        ({"privacy": {"examples": {"norm": 1.0, "noise": 1.0}}},) * 2,
    ],
)
def test_noise_in_two_stages_is_refused_before_the_first(table, tmp_path, one, two) -> None:
    """Two stages of epsilon 4.05 within a budget of 4.1 would spend 7.31 together."""
    settings = staged(table, one, {}, two)
    with pytest.raises(SettingsError, match="stages 1 and 3 of 3 add noise, and each would count its own"):
        next(stages.open_stages(settings))
    told = CliRunner().invoke(main, ["run", written(tmp_path, settings)])
    assert told.exit_code == 2
    assert "a client that is in all of them spends their sum" in told.stderr
    assert not (tmp_path / "run").exists()


def test_noise_in_one_stage_is_trained(table) -> None:
    named = {"transforms": NOISE, "privacy": {"delta": 0.2, "epsilon": 4.1}}
    assert len(stages.required(staged(table, {}, named))) == 2


@pytest.mark.parametrize(
    ("second", "sentence"),
    [
        ({"privacy": {"epsilon": 0.001, "examples": {"norm": 1.0, "noise": 1.0}}}, "above privacy.epsilon"),
        ({"privacy": {"examples": {"norm": 1.0, "noise": 1e-4}}}, "can show no epsilon"),
        ({"transforms": NOISE, "privacy": {"epsilon": 0.1}}, "privacy.epsilon allows 0.1"),
        ({"transforms": [{**NOISE[0], "noise": 1e-9}]}, "can show no epsilon"),
        ({"privacy": {"epsilon": 1.0}}, "nothing of this one does"),
        (
            {"privacy": {"examples": {"norm": 1.0, "noise": 1.0}}, "tuning": {"objective": {"name": "dpo"}}},
            "protects single examples",
        ),
    ],
)
def test_a_stage_whose_noise_is_refused_costs_no_training(table, tmp_path, second, sentence) -> None:
    with pytest.raises(SettingsError, match=sentence):
        next(stages.open_stages(staged(table, {}, second)))
    assert not (tmp_path / "run").exists()


def test_resume_takes_the_folder_that_it_is_given(table, tmp_path, monkeypatch) -> None:
    """From another directory, and after the folder has moved."""
    monkeypatch.chdir(tmp_path)
    settings = staged({**table, "output": "here/run"}, {"name": "a"}, {"name": "b"}, {"name": "c"})
    first_trained(settings)
    (tmp_path / "there").mkdir()
    monkeypatch.chdir(tmp_path / "there")
    shutil.move(tmp_path / "here" / "run", tmp_path / "moved")
    for _ in range(2):  # the second time it is finished
        told = CliRunner().invoke(main, ["resume", str(tmp_path / "moved")])
        assert told.exit_code == 0, told.output
    assert "is already finished" in told.output
    assert folder.is_finished(tmp_path / "moved")
    assert folder.read_settings(tmp_path / "moved").adapter.start == str(tmp_path / "moved/stages/02-b")
    assert not list((tmp_path / "there").iterdir())
    assert not list((tmp_path / "here").iterdir())


def test_stages_that_cannot_be_built_write_nothing(table, tmp_path) -> None:
    wrong = staged(table, {}, {"tuning": {"objective": {"name": "nothing"}}})
    with pytest.raises(SettingsError, match="nothing"):
        stages.begin(wrong)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("key", ["source", "root"])
def test_data_of_a_later_stage_that_are_not_there_are_missed_before_the_first(table, tmp_path, key) -> None:
    data = {key: str(tmp_path / "none.jsonl")}
    with pytest.raises(DataError, match=rf"no data file or folder .*none\.jsonl; check data\.{key} "):
        stages.begin(staged(table, {}, {"data": data}))
    assert not (tmp_path / "run").exists()


def test_data_of_a_stage_that_has_ended_may_be_gone(table, tmp_path) -> None:
    own = runs.written(tmp_path / "own.jsonl")
    settings = staged(table, {"data": {"source": str(own)}}, {})
    first_trained(settings)
    own.unlink()
    stages.begin(settings)


def test_a_run_file_may_be_put_right_until_a_stage_has_begun(table, tmp_path) -> None:
    data = {"source": str(tmp_path / "none.jsonl")}
    told = CliRunner().invoke(main, ["run", written(tmp_path, staged(table, {"data": data}, {}))])
    assert told.exit_code == 2
    assert "none.jsonl" in told.stderr
    settings = staged(table, {}, {})
    first_trained(settings)
    assert stages.of_folder(tmp_path / "run") == settings
    with pytest.raises(FolderError, match="holds a run with other stages"):
        stages.begin(staged(table, {"seed": 1}, {}))
    told = CliRunner().invoke(main, ["run", written(tmp_path, settings)])
    assert told.exit_code == 2
    assert "holds a run with stages that has begun" in told.stderr


def test_the_data_of_every_stage_are_shown(table, tmp_path) -> None:
    fewer = runs.written(tmp_path / "fewer.jsonl", runs.rows(12))
    settings = staged(table, {"name": "all"}, {"data": {"source": str(fewer)}})
    for command in (["check", "--samples", "0"], ["split", "--plot", str(tmp_path / "who.png")]):
        told = CliRunner().invoke(main, ["data", command[0], written(tmp_path, settings), *command[1:]])
        assert told.exit_code == 0, told.output
        first, second = told.output.split("Stage 2 of 2\n")
        assert first.startswith("Stage 1 of 2: all\n")
        assert "30 examples to train on, 6 held out" in first
        assert "10 examples to train on, 2 held out" in second
    assert (tmp_path / "who-1.png").is_file()
    assert (tmp_path / "who-2.png").is_file()


@pytest.mark.parametrize("command", ["plan", "drill", "audit", "privacy plan"])
def test_what_takes_one_run_refuses_stages_and_writes_nothing(table, tmp_path, command) -> None:
    settings = staged(table, {}, {})
    told = CliRunner().invoke(main, [*command.split(), written(tmp_path, settings)])
    assert told.exit_code == 2
    verb = command.split()[-1]
    said = f"[[stages]] are runs of their own; {verb} each of them from a file of its own, without stages"
    assert said in told.stderr
    assert sorted(each.name for each in tmp_path.iterdir()) == ["rows.jsonl", "run.toml"]
    with pytest.raises(SettingsError, match="inspect each of them"):
        inspect_data(settings)


def test_before_the_last_stage_the_others_are_named(table, tmp_path) -> None:
    settings = staged(table, {"name": "a"}, {"name": "b"})
    first_trained(settings)
    for command in ("report", "chat"):
        told = CliRunner().invoke(main, [command, str(tmp_path / "run")])
        assert told.exit_code == 2
        assert f"has not begun; name one of those that have, {tmp_path / 'run/stages/01-a'}" in told.stderr
