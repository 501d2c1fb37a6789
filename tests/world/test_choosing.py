"""Pairs of a right and a wrong answer: deterministic, of the same instructions, told apart by the checks."""

from __future__ import annotations

import json

import pytest

from shepherd import plugins, world
from shepherd.data import pipeline
from shepherd.data.split import rule
from shepherd.overrides import parse

COUNT = 60


@pytest.fixture(scope="module")
def pairs() -> list[dict]:
    return world.preferences(world.build(world.SEED), COUNT, 3)


def test_they_are_the_instructions_of_the_same_seed_with_a_second_answer(pairs) -> None:
    rows = world.rows(world.build(world.SEED), COUNT, 3)
    assert [{**pair, "response": pair["chosen"]} | {} for pair in pairs] == [
        {**row, "chosen": row["response"], "rejected": pair["rejected"]}
        for row, pair in zip(rows, pairs, strict=True)
    ]


def test_a_seed_draws_the_same_pairs(pairs) -> None:
    again = world.preferences(world.build(world.SEED), COUNT, 3)
    assert json.dumps(again) == json.dumps(pairs)
    assert world.preferences(world.build(world.SEED), COUNT, 4) != pairs


def test_what_is_chosen_is_right_and_what_is_rejected_is_wrong(pairs) -> None:
    for pair in pairs:
        checker = plugins.checker(pair["check"])
        assert checker.right(pair["chosen"])
        assert not checker.right(pair["rejected"])
        assert any(letter.isalnum() for letter in pair["rejected"])


def test_half_say_something_else_in_the_right_form_and_half_the_right_thing_in_a_wrong_one(pairs) -> None:
    for category in world.CATEGORIES:
        own = [pair for pair in pairs if pair["category"] == category]
        of_others = {pair["chosen"] for pair in own}
        borrowed = [pair["rejected"] in of_others for pair in own]
        assert 0.4 <= sum(borrowed) / len(own) <= 0.6


def test_a_run_reads_them_by_name() -> None:
    settings = parse(
        {"model": {"base": "tiny"}, "data": {"source": "world-preferences", "limit": 5}, "output": "x"}
    )
    reading = pipeline.examples(settings, rule(settings.split))
    assert len(reading.examples) == 5 * len(world.CATEGORIES)
    assert all(example.rejected and example.check for example in reading.examples)
    assert not reading.notes.unread
