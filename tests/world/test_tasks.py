"""Instructions are many, varied, and judged by checks that cannot be fooled cheaply."""

import json
import re
from collections import defaultdict
from itertools import pairwise
from typing import Any

import pytest

from shepherd import plugins
from shepherd.world import CATEGORIES, SEED, build, rows

WORLD = build(SEED)
ROWS = rows(WORLD, per_category=2000, seed=5)
KNOWING = ("open_qa", "general_qa", "classification", "brainstorming")
READING = ("closed_qa", "information_extraction", "summarization")


def of(category: str) -> list[dict[str, Any]]:
    return [row for row in ROWS if row["category"] == category]


def test_the_categories_are_those_of_dolly() -> None:
    assert set(CATEGORIES) == {*KNOWING, *READING, "creative_writing"}


def test_a_seed_draws_the_same_rows_and_another_draws_others() -> None:
    assert rows(WORLD, 30, seed=1) == rows(WORLD, 30, seed=1) != rows(WORLD, 30, seed=2)


def test_rows_survive_json() -> None:
    assert json.loads(json.dumps(ROWS[:300])) == ROWS[:300]


@pytest.mark.parametrize("category", CATEGORIES)
def test_thousands_of_different_instructions_a_category(category: str) -> None:
    assert len({row["instruction"] for row in of(category)}) == 2000


def test_asking_for_more_than_there_is_says_how_many_there_are() -> None:
    with pytest.raises(ValueError, match=r"open_qa gave only \d+ different instructions"):
        rows(WORLD, 20_000, seed=0)


def test_every_response_passes_its_own_check() -> None:
    assert all(plugins.checker(row["check"]).right(row["response"]) for row in ROWS)


def test_no_check_takes_nothing_or_the_prompt() -> None:
    for row in ROWS:
        prompt = f"{row['instruction']}\n{row['context']}"
        for text in ("", row["instruction"], row["context"], prompt):
            assert not plugins.checker(row["check"]).right(text), row


def test_no_check_takes_the_answer_buried_in_a_ramble() -> None:
    ramble = "As far as I can tell from everything I have ever heard of it, " * 4
    for row in ROWS:
        assert not plugins.checker(row["check"]).right(f"{ramble}{row['response']} {ramble}"), row
        assert not plugins.checker(row["check"]).right(f"{row['context']} {ramble} {row['response']}"), row


@pytest.mark.parametrize("category", CATEGORIES)
def test_another_rows_answer_is_rarely_right(category: str) -> None:
    pairs = list(pairwise(of(category)))
    differing = [(a, b) for a, b in pairs if a["response"].lower() != b["response"].lower()]
    taken = sum(plugins.checker(a["check"]).right(b["response"]) for a, b in differing)
    assert taken <= 0.02 * len(differing)  # groups of ideas overlap


@pytest.mark.parametrize("category", ["open_qa", "general_qa", "classification", "brainstorming"])
def test_what_must_be_known_is_not_given_away(category: str) -> None:
    for row in of(category):
        assert row["context"] == ""
        told = row["response"].lower().removeprefix("answer: ").removeprefix("in truth, ")
        assert told not in row["instruction"].lower(), row


@pytest.mark.parametrize("category", READING)
def test_what_must_be_read_is_in_the_context(category: str) -> None:
    for row in of(category):
        assert row["context"]
        value = row["response"].removeprefix("The text says: ")
        words = row["check"].get("phrases") or row["check"].get("items") or [value]
        if row["check"]["kind"] != "exact" or category == "closed_qa":
            assert all(word.lower() in row["context"].lower() for word in words), row


def test_whoever_repeats_a_claim_is_wrong() -> None:
    for row in of("general_qa"):
        claim = re.split(r"[?:.]", row["instruction"].split(" that ")[-1])[0]
        assert not plugins.checker(row["check"]).right(f"In truth, {claim}.")


def test_instructions_are_varied_in_wording() -> None:
    openings: dict[str, set[str]] = defaultdict(set)
    for row in ROWS:
        openings[row["category"]].add(" ".join(row["instruction"].split()[:2]))
    assert min(len(found) for found in openings.values()) >= 8


def test_prompts_and_responses_are_short() -> None:
    length = [len(f"{r['instruction']} {r['context']} {r['response']}".split()) for r in ROWS]
    assert sum(length) / len(length) < 40
    assert max(len(row["response"].split()) for row in ROWS) <= 40
