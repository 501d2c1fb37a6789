"""The tutorial of a federation: a real server and three real sites, each command as it stands there."""

from __future__ import annotations

import shlex
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("nvflare")

from click.testing import CliRunner

from shepherd.silos import loopback
from shepherd.ui.cli.main import main
from tests.docs.pages import blocks, commands, unsaid
from tests.docs.test_tutorials import python, written

pytestmark = pytest.mark.silos
SITES = ("north", "harbour", "hill")


def test_the_tutorial_does_what_it_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    made = loopback.Loopback(folder=tmp_path / "birds", sites=SITES)
    smaller = {
        "--server localhost ": f"--server localhost:{loopback.free_port()} ",
        'base = "tiny"': 'base = "tiny"\ndtype = "float32"',
        "max_steps = 4": "max_steps = 1",
    }
    names: dict[str, Any] = {}
    printed = ""
    with ExitStack() as ends:
        for block in blocks("three-sites", smaller):
            if block.title:
                written(tmp_path / block.title, block.text)
            elif block.kind == "python":
                printed = python(block, "three-sites", names)
            elif block.kind == "text":
                assert unsaid(block.text, printed) == [], printed
            else:
                printed = "".join(shell(words, made, ends) for words in map(shlex.split, commands(block)))


def shell(words: list[str], made: loopback.Loopback, ends: ExitStack) -> str:
    """What a command prints; the server and the sites go on until the end."""
    assert words[0] == "shepherd"
    if words[1:3] in (["silos", "server"], ["silos", "site"]):
        who = "server" if words[2] == "server" else Path(words[3]).name
        made.log(who).parent.mkdir(exist_ok=True)
        ends.enter_context(loopback.started(made, who, words[2:]))
        if who == SITES[-1]:
            loopback._await(made)
        return ""
    result = CliRunner().invoke(main, words[1:])
    asked = words[1:3] == ["silos", "check"]  # 2 where something has to be fixed
    assert result.exit_code in ((0, 2) if asked else (0,)), (words, result.output, result.exception)
    return result.output
