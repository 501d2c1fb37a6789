"""The draws: how many of each category, how wide, and the same for everybody."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shepherd.errors import StatisticsError
from shepherd.evaluate.draws import chunks, draws


@given(st.lists(st.sampled_from("abcd"), min_size=1, max_size=30))
def test_every_category_is_drawn_from_as_often_and_shares_sum_to_one(names: list[str]) -> None:
    drawn = draws(names, resamples=20)
    places = np.concatenate([group.places for group in drawn.groups])
    assert sorted(places.tolist()) == list(range(len(names)))
    assert sum(group.share for group in drawn.groups) == pytest.approx(1)
    for group in drawn.groups:
        inside = {names[place] for place in group.places}
        assert group.counts.shape == (20, len(group.places))
        assert (group.counts.sum(axis=1) == max(len(group.places) - 1, 1)).all()
        assert group.share == pytest.approx(len(inside) / len(set(names)))
        assert group.single == (len(inside) == len(group.places))


def test_each_question_is_drawn_alike_and_independently() -> None:
    counts = draws(["all"] * 11, resamples=40_000).groups[0].counts.astype(float)
    assert counts.mean(axis=0) == pytest.approx(np.full(11, 10 / 11), abs=0.02)
    # multinomial: variance n p (1 - p), covariance -n p p
    spread = np.cov(counts.T)
    assert np.diag(spread) == pytest.approx(np.full(11, 100 / 121), rel=0.05)
    assert spread[np.triu_indices(11, 1)] == pytest.approx(np.full(55, -10 / 121), abs=0.02)


def test_the_same_seed_draws_the_same_and_another_does_not() -> None:
    names = ["a", "b"] * 10
    one, again, other = draws(names), draws(names), draws(names, seed=1)
    for group, same, apart in zip(one.groups, again.groups, other.groups, strict=True):
        assert (group.counts == same.counts).all()
        assert (group.counts != apart.counts).any()


def test_one_category_keeps_its_draws() -> None:
    drawn = draws(["a", "b", "a", "c", "a", "d"], seeds=2, resamples=50)
    only = drawn.only("a")
    assert only.groups[0].places.tolist() == [0, 2, 4]
    assert (only.groups[0].counts == drawn.groups[0].counts).all()
    assert (only.questions, only.seeds, only.groups[0].share) == (3, 2, 1.0)
    alone = drawn.only("c")  # merged with b and d for the whole
    assert (alone.questions, alone.groups[0].places.tolist()) == (1, [3])
    assert (alone.groups[0].counts == 1).all()
    with pytest.raises(StatisticsError, match="'e'"):
        drawn.only("e")


def test_no_question_is_refused() -> None:
    with pytest.raises(StatisticsError, match="at least one question"):
        draws([])


@given(st.integers(1, 50_000), st.integers(1, 3_000_000))
def test_chunks_cover_every_row_once_within_bounds(resamples: int, n: int) -> None:
    found = list(chunks(resamples, n)) if resamples * n < 1 << 26 else []
    assert all(rows.stop - rows.start <= max(1, (1 << 20) // n) for rows in found)
    assert [rows.start for rows in found[1:]] == [rows.stop for rows in found[:-1]]
    assert not found or (found[0].start, found[-1].stop) == (0, resamples)
