"""What is a path and what an id, and from where a path is taken."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from shepherd.data.files import READERS
from shepherd.data.pipeline import examples
from shepherd.data.split import rule
from shepherd.errors import BaseError, DataError, SettingsError
from shepherd.io.paths import DATA_FILES, is_path, placed
from shepherd.overrides import dump, parse, read, read_kept
from shepherd.run.loading import load_base
from shepherd.settings import RunSettings, published

LEAST = '[model]\nbase = "{base}"\n[data]\nsource = "{source}"\n[judge]\nquestions = "{questions}"\n'


def written(folder: Path, base: str = "tiny", source: str = "world", questions: str = "heldout") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "run.toml"
    path.write_text(LEAST.format(base=base, source=source, questions=questions))
    return path


def found(settings: RunSettings) -> tuple[str, str, str]:
    return settings.model.base, settings.data.source, settings.judge.questions


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("base", True),  # a bare name that was never downloaded
        ("known", False),
        ("models/known", False),
        ("here/base", True),  # missing, and a folder here is in the current directory
        ("HuggingFaceTB/SmolLM2-135M", False),
        ("Qwen/Qwen2.5-0.5B", False),
        ("there", True),
        ("models/SmolLM2", True),  # missing, beside a folder models
        ("Models/SmolLM2", False),
        ("a/b/c", True),
        ("base/", True),
        ("./base", True),
        ("../base", True),
        ("/base", True),
        ("~/base", True),
        ("a base", True),
        ("somebody/data.jsonl", True),
        ("data.CSV", True),
        ("a\\b", True),
        ("x" * 5000, True),  # too long to be looked for on a disk
    ],
)
def test_what_is_a_path(tmp_path: Path, text: str, path: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("there", "models", "elsewhere/here", "hub/models--known", "hub/datasets--models--known"):
        (tmp_path / name).mkdir(parents=True)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert is_path(text, tmp_path) is path


def test_a_path_is_made_absolute_and_an_id_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    assert placed("./a/../b", tmp_path) == f"{tmp_path}/b"
    assert placed("~/b", tmp_path) == "/home/me/b"
    assert placed("owner/name", tmp_path) == "owner/name"


def test_every_data_file_that_can_be_read_is_known_as_one() -> None:
    assert tuple(READERS) == DATA_FILES


def test_paths_are_relative_to_the_run_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(tmp_path / "project", "../models/base", "rows.jsonl", "asked.jsonl")
    wanted = (f"{tmp_path}/models/base", f"{tmp_path}/project/rows.jsonl", f"{tmp_path}/project/asked.jsonl")
    for where in (tmp_path, tmp_path / "project"):
        monkeypatch.chdir(where)
        assert found(read(path)) == wanted
        assert found(read(path.relative_to(where))) == wanted


def test_names_and_ids_are_no_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("tiny", "world", "heldout", "vicuna"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path)
    assert found(read(written(tmp_path))) == ("tiny", "world", "heldout")
    ids = written(tmp_path, "owner/model", "owner/rows", "vicuna")
    assert found(read(ids)) == ("owner/model", "owner/rows", "vicuna")


def test_overrides_and_tables_are_relative_to_the_current_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = written(tmp_path / "project", "./base", "rows.jsonl")
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    changed = read(path, ["model.base=./base", "data.source=other.csv"])
    assert found(changed) == (f"{here}/base", f"{here}/other.csv", "heldout")
    assert found(read(path, ["data.source=owner/rows"]))[:2] == (f"{tmp_path}/project/base", "owner/rows")
    table = {"model": {"base": "~/base"}, "data": {"source": "rows.jsonl"}}
    assert found(parse(table))[1] == f"{here}/rows.jsonl"


def test_a_path_that_is_only_found_from_the_current_directory_is_taken_with_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    path = written(tmp_path / "project", "models/base", "owner/rows")
    (tmp_path / "models" / "base").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert found(read(path))[0] == f"{tmp_path}/models/base"
    (said,) = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert "model.base = 'models/base'" in said.getMessage()
    assert "relative to the run file, so write '../models/base'" in said.getMessage()
    caplog.clear()
    (tmp_path / "project" / "models" / "base").mkdir(parents=True)
    assert found(read(path))[0] == f"{tmp_path}/project/models/base"
    assert not caplog.records


def test_a_run_folders_own_file_is_read_as_it_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    settings = read(written(tmp_path / "project", "./base", "rows.jsonl"))
    (tmp_path / "kept.toml").write_text(dump(settings))
    assert read_kept(tmp_path / "kept.toml") == settings
    assert found(read_kept(written(tmp_path / "old", "../base", "rows.jsonl")))[:2] == (
        "../base",
        "rows.jsonl",
    )


def test_what_is_published_names_no_folder_of_this_machine(tmp_path: Path) -> None:
    settings = published(read(written(tmp_path / "p", "./base", "../private/rows.jsonl", "asked.jsonl")))
    assert found(settings) == ("base", "rows.jsonl", "asked.jsonl")
    assert str(tmp_path) not in dump(settings)


@pytest.mark.parametrize("base", ["base", "models/X"])
def test_a_missing_folder_is_no_question_to_the_hub(
    base: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "models").mkdir()
    monkeypatch.chdir(tmp_path)
    settings = read(written(tmp_path / "project", base, "daten"))
    assert found(settings)[:2] == (f"{tmp_path}/project/{base}", f"{tmp_path}/project/daten")
    with pytest.raises(BaseError, match=f"there is no folder {tmp_path}/project/{base}, which model.base"):
        load_base(settings)
    with pytest.raises(DataError, match=f"there is no data file or folder {tmp_path}/project/daten"):
        examples(settings, rule(settings.split))


@pytest.mark.parametrize("key", ["base", "source"])
def test_an_empty_name_is_refused(key: str, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=f"{key}: the text is empty"):
        read(written(tmp_path, **{key: ""}))
