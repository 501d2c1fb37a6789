import json
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest

from benchmarks import common, setting
from shepherd.errors import SettingsError


def _options(tmp_path: Path) -> Namespace:
    return common.parser("x").parse_args(
        ["--json", str(tmp_path / "f.json"), "--seed", "3", "--threads", "1"]
    )


def _tables(figures: Any) -> list[common.Table]:
    return [common.Table("Speeds", ("side", "speed"), [("a", str(figures["speed"]))], ("a note",))]


def test_what_is_printed_is_what_is_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert common.run(_options(tmp_path), lambda options: {"speed": 12.5}, _tables) == 0
    printed = capsys.readouterr().out
    assert all(part in printed for part in ("Speeds", "side", "12.5", "a note"))
    written = json.loads((tmp_path / "f.json").read_text())
    assert written["figures"] == {"speed": 12.5}
    assert written["seed"] == 3
    assert written["machine"].keys() >= {"cpu", "cores", "torch", "threads"}
    assert {"commit", "date", "versions"} <= written.keys()


def test_figures_that_fail_are_written_and_told_by_the_exit_code(tmp_path: Path) -> None:
    failed = {"speed": 0.0, "passed": False}
    assert common.run(_options(tmp_path), lambda options: failed, _tables) == 1
    assert json.loads((tmp_path / "f.json").read_text())["figures"] == failed


def test_what_is_missing_is_skipped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def measure(options: Namespace) -> Any:
        raise common.Missing("/no/base")

    assert common.run(_options(tmp_path), measure, _tables) == 0
    assert capsys.readouterr().out == "skipped: /no/base is missing\n"
    assert not (tmp_path / "f.json").exists()


def test_a_mistake_is_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def measure(options: Namespace) -> Any:
        raise SettingsError("client a has 3 examples; give fewer --steps")

    assert common.run(_options(tmp_path), measure, _tables) == 2
    assert capsys.readouterr().err == "client a has 3 examples; give fewer --steps\n"


def test_data_beside_the_project_are_found_by_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SHEPHERD_SHARED", str(tmp_path))
    with pytest.raises(common.Missing, match="novella-8m"):
        setting.settings("dolly")
    (tmp_path / "models" / "novella-8m").mkdir(parents=True)
    (tmp_path / "data" / "dolly" / "ten_clients").mkdir(parents=True)
    settings = setting.settings("dolly", {"tuning": {"max_steps": 2}}, {"tuning": {"max_steps": 3}})
    assert (settings.tuning.max_steps, settings.tuning.batch_size, settings.data.max_tokens) == (3, 16, 384)
