"""Shared prefixes against what they are by definition, and against sharing worked out by hand."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from shepherd.data import shared_prefix
from shepherd.data.shared_prefix import MIN_PREFIX_TOKENS, PrefixGroup, group_by_prefix

PREAMBLES = [list(range(100, 100 + MIN_PREFIX_TOKENS)), list(range(100, 140)), list(range(200, 230)), []]
EXAMPLES = st.lists(
    st.tuples(st.sampled_from(PREAMBLES), st.lists(st.integers(0, 2), min_size=1, max_size=6)).map(
        lambda pair: np.array([*pair[0], *pair[1]], np.int32)
    ),
    min_size=1,
    max_size=12,
)


@given(EXAMPLES)
def test_every_example_is_in_one_group_that_begins_alike_and_keeps_a_token(examples) -> None:
    found = group_by_prefix(examples)
    assert sorted(i for group in found for i in group.members) == list(range(len(examples)))
    for group in found:
        first = examples[group.members[0]][: group.tokens]
        for i in group.members:
            assert len(examples[i]) > group.tokens
            assert np.array_equal(examples[i][: group.tokens], first)
        assert group.tokens == 0 if len(group.members) == 1 else group.tokens >= MIN_PREFIX_TOKENS


@given(EXAMPLES)
def test_no_less_is_saved_than_by_one_prefix_for_all(examples) -> None:
    shortest = min(len(ids) for ids in examples) - 1
    same = [len({int(ids[t]) for ids in examples}) == 1 for t in range(shortest)]
    for_all = same.index(False) if False in same else shortest
    if for_all >= MIN_PREFIX_TOKENS:
        assert sum(group.saved for group in group_by_prefix(examples)) >= for_all * (len(examples) - 1)


def test_two_forms_of_a_prompt_stay_two_though_they_begin_alike() -> None:
    long, short = [1] * 20 + [2] * 20, [1] * 20 + [3] * 10
    examples = [np.array([*form, 9, k]) for k in range(3) for form in (long, short)]
    assert group_by_prefix(examples) == [
        PrefixGroup(tokens=41, members=(0, 2, 4)),
        PrefixGroup(tokens=31, members=(1, 3, 5)),
    ]


def test_a_longer_text_of_two_is_shared_by_these_where_that_saves_more() -> None:
    preamble, text = [1] * 20, [5] * 100
    alike = [np.array([*preamble, *text, k]) for k in (7, 8)]
    others = [np.array([*preamble, 2, k]) for k in (7, 8)]
    assert group_by_prefix([*alike, *others]) == [
        PrefixGroup(tokens=120, members=(0, 1)),
        PrefixGroup(tokens=21, members=(2, 3)),
    ]
    many = [np.array([*preamble, 2 + k]) for k in range(5)]
    pair = [np.array([*preamble, 1, k]) for k in (7, 8)]
    assert group_by_prefix([*many, *pair]) == [
        PrefixGroup(tokens=20, members=(5, 6, 0, 1, 2, 3, 4))
    ]  # 120 saved, not 101


def test_what_is_short_is_left_alone() -> None:
    examples = [np.array([*range(MIN_PREFIX_TOKENS - 1), k]) for k in (50, 51)]
    assert [group.tokens for group in group_by_prefix(examples)] == [0, 0]
    assert group_by_prefix([]) == []
    assert shared_prefix.group_by_prefix([np.array([1])]) == [PrefixGroup(tokens=0, members=(0,))]
