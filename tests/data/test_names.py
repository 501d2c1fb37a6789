"""Data files whose names are not UTF-8: one sentence that names them by their bytes, wherever they are."""

from __future__ import annotations

import os
import sys
from pathlib import Path, PurePath

import pytest
from click.testing import CliRunner

from shepherd.data import files, pipeline
from shepherd.errors import DataError, SettingsError
from shepherd.overrides import parse, read
from shepherd.run import fitting
from shepherd.ui.cli import main as cli

BYTES = b"caf\xe9"
NAME = os.fsdecode(BYTES)
ROW = '{"instruction": "Say it", "response": "it"}\n'
pytestmark = pytest.mark.skipif(sys.platform in ("win32", "darwin"), reason="its names are text")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """One file a client, one of them with a name in Latin-1."""
    (tmp_path / "clients").mkdir()
    for stem in ("a", NAME):
        (tmp_path / "clients" / f"{stem}.jsonl").write_text(ROW * 3)
    return tmp_path / "clients"


def of(source: object, by: str = "ready-made") -> dict[str, object]:
    return {"model": {"base": "tiny"}, "data": {"source": str(source)}, "split": {"by": by}}


@pytest.mark.parametrize("by", ["ready-made", "iid"])
def test_a_file_of_a_folder_is_named_by_its_bytes(folder: Path, by: str) -> None:
    with pytest.raises(
        DataError, match=r"the name of data file b'.*/caf\\xe9\.jsonl' is not UTF-8; rename it"
    ):
        pipeline.divide(parse(of(folder, by)))
    with pytest.raises(DataError, match="is not UTF-8"):
        files.left_out(str(folder))
    with pytest.raises(DataError, match="is not UTF-8"):
        fitting.fit(str(folder))


def test_so_is_one_that_is_left_out_for_testing(tmp_path: Path) -> None:
    for stem in ("a", f"test_{NAME}"):
        (tmp_path / f"{stem}.jsonl").write_text(ROW * 3)
    with pytest.raises(DataError, match=r"test_caf\\xe9"):
        files.left_out(str(tmp_path))


def test_a_path_that_a_run_file_could_not_hold_is_refused_before_anything(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    odd = tmp_path / NAME
    odd.mkdir()
    (odd / "rows.jsonl").write_text(ROW * 3)
    with pytest.raises(
        SettingsError, match=r"key data\.source: the path b'.*caf\\xe9/rows\.jsonl' is not UTF-8"
    ):
        parse(of(odd / "rows.jsonl", "iid"))
    (odd / "run.toml").write_text('[model]\nbase = "tiny"\n[data]\nsource = "rows.jsonl"\n')
    with pytest.raises(SettingsError, match="is not UTF-8"):
        read(odd / "run.toml")
    monkeypatch.chdir(odd)
    Path("run.toml").write_text('[model]\nbase = "tiny"\n[data]\nsource = "world"\n')
    with pytest.raises(SettingsError, match=r"override b'output=caf\\xe9' is not UTF-8"):
        read("run.toml", [f"output={NAME}"])
    with pytest.raises(DataError, match="is not UTF-8"):
        files.parts(str(odd / "rows.jsonl"), None, "train")


@pytest.mark.parametrize("command", [("data", "check"), ("data", "split")])
def test_the_commands_say_it_in_one_sentence(folder: Path, tmp_path: Path, command: tuple[str, ...]) -> None:
    path = tmp_path / "run.toml"
    path.write_text('[model]\nbase = "tiny"\n[data]\nsource = "clients"\n[split]\nby = "ready-made"\n')
    result = CliRunner().invoke(cli.main, [*command, str(path)])
    assert result.exit_code == 2, result.exception
    assert "caf\\xe9.jsonl' is not UTF-8; rename it\n" in result.output
    result.output.encode()


class Counted(str):
    """A name that counts how often it is compared."""

    compared = 0

    def __eq__(self, other: object) -> bool:
        Counted.compared += 1
        return str.__eq__(self, other)

    __hash__ = str.__hash__


def test_a_folder_of_many_files_is_looked_through_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each file's name against each other's would be hours for some ten thousand clients."""
    many = 300
    for number in range(many):
        (tmp_path / f"client_{number}.jsonl").write_text(ROW)
    stem = PurePath.stem
    monkeypatch.setattr(PurePath, "stem", property(lambda path: Counted(stem.__get__(path))))
    assert len(files._clients(tmp_path)) == many
    assert Counted.compared < 10 * many


def test_names_of_250_bytes_in_any_script_are_clients(tmp_path: Path) -> None:
    stems = ["\u4e2d" * 83, "\U0001f411" * 62, "x" * 249, "M\u00fcnchen", "Mu\u0308nchen", "ulm", "Ulm"]
    for stem in stems:
        (tmp_path / f"{stem}.json").write_text(f"[{ROW}]")
    division = pipeline.divide(parse(of(tmp_path)))
    assert sorted(division.clients) == sorted(stems)
