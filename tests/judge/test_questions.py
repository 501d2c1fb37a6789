"""Files of questions as people have them, and the faults of rows by file and line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from shepherd.data.examples import Example, Turn
from shepherd.errors import DataError
from shepherd.judge import questions
from shepherd.judge.questions import Question


def written(path: Path, *rows: object) -> Path:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def test_rows_of_every_shape(tmp_path: Path) -> None:
    file = written(
        tmp_path / "q.jsonl",
        {"question_id": 81, "category": "writing", "turns": ["Write.", "Shorter."]},
        {"id": "b", "instruction": "Sum up.", "context": "Long text.", "response": "Text."},
        {"question": "Why?"},
        {"prompt": "How?", "input": "So.", "reference": ["Like this.", "And this."]},
    )
    assert questions.read(file) == (
        Question(id="81", text="Write.", category="writing"),
        Question(id="b", text="Sum up.", context="Long text.", reference="Text."),
        Question(id="3", text="Why?"),
        Question(id="4", text="How?", context="So.", reference="Like this."),
    )


def test_a_table_is_a_file_of_questions_too(tmp_path: Path) -> None:
    file = tmp_path / "q.csv"
    file.write_text("id,question,category\n007,Why?,a\n")
    assert questions.find(str(file)) == (Question(id="007", text="Why?", category="a"),)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("[1]", "line 2 is no object"),
        ("{", "line 2 is not JSON"),
        ({"category": "a"}, "line 2 has no question; give it one of the fields question, instruction"),
        ({"question": "  "}, "line 2 has no question"),
        ({"question": ["a"], "id": {}}, "line 2: field id is not text"),
        ({"turns": []}, "line 2: field turns is not a list of texts"),
        ({"turns": "Why?"}, "line 2: field turns is not a list of texts"),
        ({"question": "\ud800"}, "line 2 holds half of a surrogate pair"),
        ({"id": 1, "question": "Again?"}, "line 2: the id 1 is already used"),
    ],
)
def test_a_row_that_cannot_be_read_is_named_by_its_line(tmp_path: Path, row: object, message: str) -> None:
    file = written(tmp_path / "q.jsonl", {"question": "Why?"}, row)
    with pytest.raises(DataError) as caught:
        questions.read(file)
    assert f"{file}, {message}" in str(caught.value)


def test_an_empty_or_missing_file_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "q.jsonl").write_text("\n")
    for file, message in (
        ("q.jsonl", "has no rows"),
        ("r.jsonl", "cannot be read"),
        ("q", "cannot be read"),
        ("q.odt", "extension"),
    ):
        with pytest.raises(DataError, match=message):
            questions.find(str(tmp_path / file))


def test_the_known_files_are_found_where_the_environment_says(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("SHEPHERD_SHARED", str(tmp_path))
    for name in ("vicuna", "mt-bench"):
        with pytest.raises(DataError, match=r"expected in .*prompts.*set SHEPHERD_SHARED to the folder"):
            questions.find(name)
    prompts = tmp_path / "data" / "prompts"
    prompts.mkdir(parents=True)
    rows = [{"question_id": n, "turns": [f"q{n}", "more"], "reference": ["own", ""]} for n in (81, 101)]
    answers = [{"question_id": 101, "choices": [{"turns": ["good", "better"]}]}]
    written(prompts / "mt_bench_question.jsonl", *rows)
    written(prompts / "mt_bench_reference_gpt-4.jsonl", *answers)
    assert [(q.text, q.reference) for q in questions.find("mt-bench")] == [("q81", "own"), ("q101", "good")]
    written(prompts / "mt_bench_reference_gpt-4.jsonl", {"question_id": 101, "choices": []})
    with pytest.raises(DataError, match="line 1 is not a reference answer"):
        questions.find("mt-bench")


def test_held_out_questions_belong_to_a_run() -> None:
    with pytest.raises(DataError, match='"heldout" are available in a run only; use a file'):
        questions.find("heldout")


def test_held_out_examples_are_known_by_their_content() -> None:
    def example(text: str, response: str, category: str = "a") -> Example:
        turns = (Turn(role="user", text=text, context="c"), Turn(role="assistant", text=response))
        return Example(turns=turns, category=category)

    first, second = questions.held_out([example("x", "1"), example("y", "2"), example("x", "1")])
    assert (first.text, first.context, first.reference, first.category) == ("x", "c", "1", "a")
    assert questions.held_out([example("y", "2"), example("x", "1")]) == (second, first)
    assert len({first.id, second.id, questions.held_out([example("x", "3")])[0].id}) == 3


def test_a_limit_is_spread_over_the_categories() -> None:
    asked = [Question(id=str(n), text="?", category="ab"[n > 5]) for n in range(8)]
    assert [q.id for q in questions.limited(asked, 4)] == ["0", "1", "6", "7"]
    assert questions.limited(asked, None) == tuple(asked)
