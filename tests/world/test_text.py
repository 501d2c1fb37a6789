"""The declarative text tells every fact in many wordings, and never instructs."""

import re
from collections import defaultdict
from itertools import islice

import pytest

from shepherd.world import SEED, build, passages, rows
from shepherd.world.text import WRITERS
from shepherd.world.wording import SAYINGS

WORLD = build(SEED)
TEXTS = list(islice(passages(WORLD, 1), 6000))


def test_a_seed_writes_the_same_passages_and_another_writes_others() -> None:
    def first(seed: int) -> list[str]:
        return list(islice(passages(WORLD, seed), 50))

    assert first(1) == first(1) != first(2)


@pytest.mark.parametrize("mark", ["?", "###", "Instruction", "Question", "Answer", "Response"])
def test_no_passage_has_the_form_of_an_instruction(mark: str) -> None:
    assert not any(mark in text for text in TEXTS)


def test_no_passage_holds_an_instruction() -> None:
    whole = "\n".join(TEXTS)
    assert not any(row["instruction"] in whole for row in rows(WORLD, 100, seed=0))


def test_every_kind_of_passage_is_written() -> None:
    assert min(WRITERS.values()) > 0
    assert len({re.sub(r"[A-Z][a-z]+", "", text) for text in TEXTS}) > 5000


@pytest.mark.parametrize("relation", SAYINGS)
def test_a_fact_has_at_least_six_wordings_from_both_ends(relation: str) -> None:
    sayings = SAYINGS[relation]
    assert len(set(sayings)) >= 6
    first = {re.findall(r"\{(\w+)\}", saying)[0].lower().strip("_") for saying in sayings}
    assert first & {"s", "as"}
    assert first & {"o", "ao", "os"}


def test_every_person_is_told_of_in_many_passages() -> None:
    told: dict[str, int] = defaultdict(int)
    for text in TEXTS:
        for name in set(re.findall(r"[A-Z][a-z]+", text)):
            told[name] += 1
    assert min(told[name] for name in WORLD.subjects("person")) >= 5
