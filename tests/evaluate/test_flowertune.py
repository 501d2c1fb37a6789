"""FlowerTune's formats: their prompts letter by letter, and how an answer is read."""

from __future__ import annotations

import pytest

from shepherd.errors import DataError
from shepherd.evaluate.flowertune import FORMATS, require_fit

CHOICES = ("London", "Paris", "Berlin")


def test_the_prompt_of_general() -> None:
    assert FORMATS["general"].prompt("What is the capital of France", CHOICES) == (
        "<|im_start|>question\nQuestion: What is the capital of France?\n\nOptions:\n"
        "A. London\nB. Paris\nC. Berlin<|im_end|>\n<|im_start|>answer\n"
    )


def test_choices_that_are_letters_are_in_the_question_already() -> None:
    for name in ("general", "medical"):
        assert FORMATS[name].prompt("Which?\nA. x\nB. y", ("A", "B")) == (
            "<|im_start|>question\nWhich?\nA. x\nB. y<|im_end|>\n<|im_start|>answer\n"
        )


def test_medical_asks_for_words_where_the_choices_are_yes_and_no() -> None:
    how = FORMATS["medical"]
    assert how.expected(("yes", "no", "maybe"), 2) == "maybe"
    assert how.expected(CHOICES, 2) == "C"
    assert how.prompt("Does it help?", ("yes", "no")).count("Options") == 0


def test_the_prompt_of_finance() -> None:
    assert FORMATS["finance"].prompt("Sales rose.", ("negative", "positive")) == (
        "Instruction: What is the sentiment of this news? Please choose an answer from"
        " {negative/neutral/positive}.\nInput: Sales rose.\nAnswer: "
    )


@pytest.mark.parametrize(
    ("name", "answer", "expected", "right"),
    [
        ("general", "B", "B", True),
        ("general", "\nB. Paris", "B", True),
        ("general", "b", "B", False),
        ("general", "The answer is B", "B", False),  # a format, not knowledge
        ("general", "", "B", False),
        ("medical", "Maybe", "maybe", True),
        ("medical", "no", "yes", False),
        ("finance", "not positive", "positive", True),
        ("finance", "who knows", "neutral", True),
        ("finance", "", "neutral", True),
        ("finance", "Negative", "positive", False),
    ],
)
def test_how_an_answer_is_read(name, answer, expected, right) -> None:
    assert FORMATS[name].reads(answer, expected) is right


def test_what_a_format_cannot_ask_is_named() -> None:
    require_fit("general", [CHOICES, [f"w{n}" for n in range(26)]])
    require_fit("finance", [["Positive", "negative"]])
    with pytest.raises(DataError, match=r"names choices by letters, and a document has 27 of them"):
        require_fit("medical", [CHOICES, [f"w{n}" for n in range(27)]])
    with pytest.raises(
        DataError, match="reads a sentiment, and a document has the choices London, Paris and"
    ):
        require_fit("finance", [["positive"], CHOICES])
    with pytest.raises(DataError, match="none of the tasks is of choices"):
        require_fit("general", [])


def test_how_long_an_answer_may_be() -> None:
    assert [FORMATS[name].budget(500, 2) for name in ("general", "medical", "finance")] == [2, 2, 12]
    assert FORMATS["finance"].budget(600, 2) == 1
