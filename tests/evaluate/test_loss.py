"""Means of held-out losses, worked by hand."""

from __future__ import annotations

import math

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from shepherd.evaluate.loss import stratified_subset, summarise


def test_categories_clients_and_the_whole_by_hand() -> None:
    scored = summarise(
        np.array([6.0, 2.0, 3.0, 1.0]),
        np.array([3, 1, 1, 1]),
        ["qa", "qa", "poem", "list"],
        {"ann": {"qa": 3, "poem": 1}, "bob": {"list": 5, "chat": 95}, "cay": {"chat": 2}},
    )
    assert scored.category == {"qa": 8 / 4, "poem": 3.0, "list": 1.0}  # over tokens within a category
    assert scored.loss == (2 + 3 + 1) / 3  # over categories, each once
    assert scored.client["ann"] == (3 * 2 + 1 * 3) / 4
    assert scored.client["bob"] == 1.0  # of what is held out of its mix
    assert math.isnan(scored.client["cay"])
    assert scored.worst_client == (3 * 2 + 1 * 3) / 4
    assert scored.spread == (2.25 - 1.0) / 2  # of two clients
    row = scored.row()
    assert list(row) == ["loss", "category", "client", "worst_client", "spread"]
    assert (row["loss"], row["category"]) == (scored.loss, scored.category)


def test_one_category_is_its_mean_over_tokens() -> None:
    scored = summarise(np.array([1.0, 5.0]), np.array([1, 2]), ["all", "all"], {"ann": {"all": 4}})
    assert scored.loss == scored.category["all"] == scored.client["ann"] == 2.0


def test_places_are_spread_evenly_by_hand() -> None:
    names = ["a", "a", "b", "a", "c", "b"]
    assert stratified_subset(names, 0).tolist() == []
    assert stratified_subset(names, 2).tolist() == [0, 2]
    assert stratified_subset(names, 4).tolist() == [0, 1, 2, 4]
    assert stratified_subset(names, 5).tolist() == [0, 1, 2, 4, 5]
    assert stratified_subset(names, 99).tolist() == [0, 1, 2, 3, 4, 5]
    assert stratified_subset([], 3).tolist() == []


@given(st.lists(st.sampled_from("abcd"), max_size=30), st.integers(0, 40))
def test_no_category_is_taken_twice_as_often_while_another_has_more(names: list[str], most: int) -> None:
    places = stratified_subset(names, most).tolist()
    assert places == sorted(set(places))
    assert len(places) == min(most, len(names))
    taken = {name: sum(names[place] == name for place in places) for name in names}
    for name, count in taken.items():
        if count < names.count(name):
            assert max(taken.values()) <= count + 1
        first = [place for place, other in enumerate(names) if other == name][:count]
        assert [place for place in places if names[place] == name] == first
