"""Answers and their checks, by hand."""

from __future__ import annotations

from shepherd.data.examples import Example, Turn
from shepherd.evaluate.answers import by_category, checked


def example(category: str, asked: str, right: str) -> Example:
    turns = (Turn(role="user", text=asked, context="of old"), Turn(role="assistant", text=right))
    return Example(turns=turns, category=category, check={"kind": "exact", "answer": right})


EXAMPLES = [example("qa", "who?", "Mia"), example("qa", "where?", "Ashford"), example("sum", "1 + 1?", "2")]


def rows() -> list[dict[str, object]]:
    return checked(
        EXAMPLES,
        ["Mia", "here", "3"],
        ["Mia", "Ashford", "2"],
    )


def test_a_row_holds_the_question_both_answers_and_both_verdicts() -> None:
    assert rows()[1] == {
        "category": "qa",
        "instruction": "where?",
        "context": "of old",
        "expected": "Ashford",
        "before": "here",
        "after": "Ashford",
        "right_before": False,
        "right_after": True,
    }


def test_shares_by_category() -> None:
    assert by_category(rows()) == {"qa": (0.5, 1.0), "sum": (0.0, 1.0)}
    assert by_category([]) == {}
