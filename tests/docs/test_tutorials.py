"""The tutorials do what they say: their files are written, their commands and their Python run, in order."""

from __future__ import annotations

import contextlib
import io
import shlex
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from shepherd.ui.cli.main import main
from tests.docs.pages import TUTORIALS, Block, blocks, commands, unsaid

EXACT = {'base = "tiny"': 'base = "tiny"\ndtype = "float32"', "batch_size = 16": "batch_size = 4"}
SHORT = {**EXACT, "limit = 120": "limit = 6", "rounds = 3": "rounds = 2", "max_steps = 6": "max_steps = 1"}
FEW = "answers = 8\nmax_new_tokens = 4"
SMALLER: Mapping[str, Mapping[str, str]] = {
    "first-run": {**SHORT, "answers = 16": FEW},
    "your-own-data": {"federation.rounds=2": "federation.rounds=1 model.dtype=float32"},
    "is-it-worth-it": {**SHORT, "answers = 32": FEW},
    "write-an-aggregation": {'base = "tiny"': 'base = "tiny"\ndtype = "float32"', "rounds = 2": "rounds = 1"},
}
"""Each tutorial's numbers that a test makes smaller, so that it takes seconds."""


def test_every_tutorial_is_run() -> None:
    over_silos = {"three-sites"}  # by test_three_sites.py
    assert {path.stem for path in TUTORIALS.glob("*.md")} == SMALLER.keys() | over_silos


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty current folder, from which modules can be imported as with PYTHONPATH=."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{':'.join(filter(None, sys.path))}")
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if getattr(sys.modules[name], "__file__", None) and str(tmp_path) in str(sys.modules[name].__file__):
            del sys.modules[name]


@pytest.mark.parametrize("name", SMALLER)
def test_a_tutorial_does_what_it_says(name: str, folder: Path) -> None:
    names: dict[str, Any] = {}
    printed = ""
    for block in blocks(name, SMALLER[name]):
        match block.kind:
            case _ if block.title:
                written(folder / block.title, block.text)
            case "sh":
                printed = "".join(map(shell, commands(block)))
            case "python":
                printed = python(block, name, names)
            case "text":
                assert unsaid(block.text, printed) == [], printed
            case kind:
                assert kind in ("toml", "console"), f"nobody runs {kind}"


def written(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf8")


def shell(command: str) -> str:
    """What a command prints; `export` sets what the fixture has set."""
    words = shlex.split(command)
    if words[0] == "export":
        assert words[1:] == ["PYTHONPATH=."]
        return ""
    assert words[0] == "shepherd", command
    result = CliRunner().invoke(main, words[1:])
    assert result.exit_code == 0, (command, result.output, result.exception)
    return result.output


def python(block: Block, name: str, names: dict[str, Any]) -> str:
    """What Python prints; names stay from block to block of a page."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        exec(compile(block.text, f"{name}.md", "exec"), names)
    return out.getvalue()
