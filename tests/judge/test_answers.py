"""Answers files: read as written, each fault by its line."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shepherd.errors import DataError
from shepherd.judge import answers
from shepherd.judge.answers import Answers
from shepherd.judge.questions import Question

TEXTS = st.text(st.characters(exclude_categories=["Cs"]))


@given(st.dictionaries(TEXTS, TEXTS, min_size=1))
def test_what_is_written_reads_back(tmp_path_factory: pytest.TempPathFactory, texts: dict[str, str]) -> None:
    path = tmp_path_factory.mktemp("answers") / "a.jsonl"
    assert answers.read(answers.write(path, Answers(name="a", texts=texts)), "b") == Answers(
        name="b", texts=texts
    )


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"question": "1", "answer": "again"}', "line 2: question 1 was already answered"),
        ('{"question": 1, "answer": "again"}', "line 2: question 1 was already answered"),
        ('{"question": "2"}', 'line 2 is not an answer; write it as {"question": "id", "answer": "text"}'),
        ('{"question": "2", "answer": null}', "line 2 is not an answer"),
        ('{"question": "2", "answer": "\\ud800"}', "line 2 holds half of a surrogate pair"),
        ("[", "line 2 is not JSON"),
    ],
)
def test_a_fault_is_named_by_its_line(tmp_path: Path, line: str, message: str) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text(f'{{"question": "1", "answer": ""}}\n{line}\n')
    with pytest.raises(DataError) as caught:
        answers.read(file, "a")
    assert f"{file}, {message}" in str(caught.value)


def test_arms_have_the_shortest_names_that_tell_them_apart(tmp_path: Path) -> None:
    assert answers.names(Path("a/base.jsonl"), Path("a/mine.jsonl")) == ("base", "mine")
    assert answers.names(Path("x/a/adapter"), Path("y/a/adapter")) == ("x/a/adapter", "y/a/adapter")
    assert answers.names(Path("."), Path("..")) == (Path.cwd().name, Path.cwd().parent.name)
    with pytest.raises(DataError, match="are the same answers"):
        answers.names(Path("a"), Path("b/../a"))


def test_every_question_wants_an_answer() -> None:
    asked = [Question(id=name, text="?") for name in "abc"]
    said = Answers(name="base", texts={"a": "", "b": "x", "more": "y"})
    said.require(asked[:2])
    with pytest.raises(DataError, match=r"base has no answer to question c \(1 missing\)"):
        said.require(asked)
