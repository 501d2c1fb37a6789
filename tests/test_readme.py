"""What the README shows runs as it stands."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf8")


def test_the_ten_lines_of_python_train_and_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (block,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert len(block.splitlines()) <= 10
    monkeypatch.chdir(ROOT)
    exec(compile(block.replace("runs/python", str(tmp_path / "run")), "README.md", "exec"), {})
    *rounds, answers = capsys.readouterr().out.strip().splitlines()
    assert [line.split()[0] for line in rounds] == ["1", "2"]
    assert "'open_qa': (" in answers
    assert (tmp_path / "run" / "adapter" / "adapter_model.safetensors").is_file()


def test_every_command_named_there_exists() -> None:
    from click.testing import CliRunner

    from shepherd.ui.cli.main import main

    for words in set(re.findall(r"^shepherd ((?:data )?[a-z]+)", README, re.MULTILINE)):
        assert CliRunner().invoke(main, [*words.split(), "--help"]).exit_code == 0, words
