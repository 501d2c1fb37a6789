"""Answers go to stdout; everything else goes to stderr."""

from __future__ import annotations

import json
import re

import pytest

from shepherd.data.prompts import prompt_of, with_context
from shepherd.run.answerer import Answer
from shepherd.settings import DataTable
from shepherd.ui.terminal import answers
from tests.ui.terminal.golden import require_golden

TABLE = DataTable(source="world")


def answer(text: str, asked: str = "Who?", context: str = "", n: int = 1, cut: bool = False) -> Answer:
    prompt = with_context(prompt_of(asked, TABLE), context)
    return Answer(prompt=prompt, text=text, n=n, seed=4 if n > 1 else None, cut=cut)


def test_one_answer_is_printed_alone(capsys: pytest.CaptureFixture[str]) -> None:
    answers.print_answers([answer("Ann.\nBo.")], several=False, as_json=False)
    assert capsys.readouterr() == ("Ann.\nBo.\n", "")


def test_several_are_printed_below_their_prompts(capsys: pytest.CaptureFixture[str]) -> None:
    found = [answer("Ann."), answer("Bo.", n=2, cut=True), answer("x", asked="long " * 40)]
    answers.print_answers(found, several=True, as_json=False)
    out, err = capsys.readouterr()
    require_golden("answers_several", out)
    assert err == "1 of 3 answers were cut at the longest length; raise it with --max-new-tokens\n"


def test_json_is_an_object_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    answers.print_answers(
        [answer("小さい\n鳥", context="Ann"), answer("Bo", n=2)], several=True, as_json=True
    )
    lines = capsys.readouterr().out.splitlines()
    assert [json.loads(line) for line in lines] == [
        {"prompt": "Who?", "context": "Ann", "answer": "小さい\n鳥", "n": 1, "seed": None},
        {"prompt": "Who?", "answer": "Bo", "n": 2, "seed": 4},
    ]
    assert "小さい" in lines[0]


def test_the_time_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with answers.timed("loaded tiny"):
        pass
    with pytest.raises(ZeroDivisionError), answers.timed("loaded small"):
        raise ZeroDivisionError
    out, err = capsys.readouterr()
    assert out == ""
    assert re.fullmatch(r"loaded tiny in \d+\.\d s\n", err)
