"""How scores were measured: what is said of it, and which score takes the place of which."""

from __future__ import annotations

from typing import Any

import pytest

from shepherd.evaluate.how import asked_by, replaces, words

ONE = {"version": "1.0", "fewshot": 0, "own_fewshot": 0}


def row(documents: int = 14, **how: Any) -> dict[str, Any]:
    """A score of a task as it is by default, but for what is given."""
    usual = {"limited": documents < 14, "of_documents": 14, "tasks": {"quiz": ONE}, "chat": False}
    how = {**usual, "lm_eval": "0.4.9", **how}
    return {"name": "quiz.acc", "kind": "task", "documents": documents, "how": how}


def shots(number: int, own: int = 0) -> dict[str, Any]:
    return {"quiz": {**ONE, "fewshot": number, "own_fewshot": own}}


OLD = {"name": "quiz.acc", "kind": "task", "documents": 14}
PROMPTS = {"tasks": {}, "chat": None, "lm_eval": None, "prompts": "a.csv", "max_new_tokens": 64}


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (row(), ""),
        (row(tasks=shots(2, own=2)), ""),
        (row(4), "4 of 14 documents"),
        (row(tasks=shots(0, own=2)), "0 examples in the prompt and not 2"),
        (row(chat=True), "in the chat template"),
        (row(tasks={"a": ONE, **shots(5, own=3)}), "5 examples in the prompt and not 3"),
        ({**row(), "kind": "format"}, "over quiz"),
        (row(**PROMPTS), "a.csv, answers of at most 64 tokens"),
        (row(3, **PROMPTS, judge="large"), "3 of 14 prompts, a.csv, answers of at most 64 tokens, large"),
        (OLD, "measured in a way that is not known"),
    ],
)
def test_what_differs_from_the_tasks_own_way_is_said(given, said) -> None:
    assert words(given) == said


@pytest.mark.parametrize(
    ("new", "old", "whether"),
    [
        (row(), row(), True),
        (row(), row(4), True),
        (row(4), row(), False),
        (row(4), row(5), False),
        (row(4), row(4), True),
        (row(chat=True), row(), False),
        (row(tasks=shots(5)), row(), False),
        (row(lm_eval="0.5"), row(), True),
        (row(tasks={"quiz": {**ONE, "version": "2.0"}}), row(), True),
        (row(**PROMPTS), row(**{**PROMPTS, "max_new_tokens": 8}), False),
        (row(**PROMPTS), row(**{**PROMPTS, "prompts": "b.csv"}), False),
        (row(**PROMPTS, judge="large"), row(**PROMPTS, judge="small"), False),
        (row(), OLD, True),
        (row(4), OLD, False),
        (OLD, row(), False),
        (OLD, OLD, True),
        (row(), {**row(), "name": "quiz.f1"}, False),
    ],
)
def test_what_was_measured_in_another_way_is_not_replaced(new, old, whether) -> None:
    assert replaces(new, old) is whether


def test_the_versions_are_said_once() -> None:
    assert asked_by([row(), row(chat=True), OLD]) == (
        "Tasks are asked by lm-eval 0.4.9, in the versions quiz 1.0."
    )
    unversioned = {"quiz": {"fewshot": 0, "own_fewshot": 0}}
    assert asked_by([row(tasks=unversioned)]) == "Tasks are asked by lm-eval 0.4.9."
    assert asked_by([row(**PROMPTS), OLD]) == ""
