"""What sites have trained: never less than a list of all visits says, in whatever jobs they took part."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given
from hypothesis import settings as how
from hypothesis import strategies as st

from shepherd.privacy import example_level
from shepherd.settings import TuningTable
from shepherd.silos.server import exposure
from shepherd.silos.server.exposure import Exposure, Exposures

TUNING = TuningTable(batch_size=16, epochs=1.0)
ROUND = st.tuples(
    st.dictionaries(st.sampled_from("abc"), st.integers(2, 400), min_size=1),
    st.one_of(st.none(), st.sets(st.sampled_from("abc"))),
)


@how(max_examples=60, deadline=None)
@given(rounds=st.lists(ROUND, max_size=8))
def test_no_visit_is_left_out_and_each_counts_with_the_fewest_examples(rounds: list[Any]) -> None:
    found = Exposures()
    for sizes, asked in rounds:
        found = found.after_round(sizes, asked, TUNING)
        found = exposure.of_notes({exposure.NOTE: json.loads(json.dumps(found.note()))}, 9)
    for site in "abc":
        held = [sizes[site] for sizes, _ in rounds if site in sizes]
        visits = [n[site] for n, asked in rounds if site in n and (asked is None or site in asked)]
        if not held:
            assert site not in found.sites
            continue
        kept = found.sites[site]
        assert (kept.fewest, kept.most) == (min(held), max(held))
        made = sum(example_level.steps(TUNING, n) for n in visits)
        if all(asked is not None for _, asked in rounds):
            assert kept.steps == made
        assert kept.steps >= made


def test_who_joins_later_counts_as_asked_in_rounds_of_which_nobody_knows() -> None:
    hidden = Exposures().after_round({"a": 160}, None, TUNING).after_round({"a": 160}, None, TUNING)
    assert hidden.sites == {"a": Exposure(fewest=160, most=160, steps=20)}
    assert hidden.of("b", 80, TUNING) == Exposure(fewest=80, most=80, steps=10)
    assert hidden.after_round({"b": 80}, None, TUNING).sites["b"].steps == 15


def test_notes_without_a_word_count_all_their_rounds() -> None:
    found = exposure.of_notes({"row": None}, 3)
    assert found.of("a", 160, TUNING).steps == 30
    assert found.after_round({"a": 160}, {"b"}, TUNING).sites["a"].steps == 30
