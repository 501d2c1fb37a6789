"""Every token stands in one place, padding is bounded, and the running layout is put back."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from shepherd.model import pass_plan

CPU = torch.device("cpu")
LENGTHS = st.lists(st.integers(1, 60), min_size=1, max_size=30)


def queries_of(lengths: list[int]) -> pass_plan.Buckets:
    padding = pass_plan.packed(lengths, [], CPU).padding
    assert padding is not None
    assert padding.keys is padding.queries  # nobody goes on after a shared prefix
    return padding.queries


@given(LENGTHS)
def test_every_token_stands_in_one_place_and_comes_back_to_its_own(lengths: list[int]) -> None:
    padding = queries_of(lengths)
    line = torch.arange(sum(lengths))
    assert line[padding.gather][padding.inverse].equal(line)
    assert len(padding.inverse.unique()) == len(line)


@given(LENGTHS)
def test_a_row_of_a_bucket_is_one_whole_example_from_its_first_token(lengths: list[int]) -> None:
    owner = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    place = torch.from_numpy(pass_plan.positions(lengths))
    padding, found, start = queries_of(lengths), [], 0
    for count, width in padding.shapes:
        for _ in range(count):
            row = padding.gather[start : start + width]
            (example,) = owner[row].unique().tolist()
            last = lengths[example] - 1
            assert place[row].tolist() == [min(step, last) for step in range(width)]
            # a real token is found at the real place, never at the padding that repeats it
            assert padding.inverse[row[: last + 1]].tolist() == list(range(start, start + last + 1))
            found.append(example)
            start += width
    assert sorted(found) == list(range(len(lengths)))
    assert start == len(padding.gather)


@given(LENGTHS, st.data())
def test_a_prefix_is_in_the_keys_of_all_that_continue_it(lengths, data) -> None:
    prefixes = data.draw(st.sets(st.integers(0, len(lengths) - 1), max_size=3))
    after = [
        -1 if j in prefixes else data.draw(st.sampled_from([-1, *prefixes])) for j in range(len(lengths))
    ]
    padding = pass_plan.packed(lengths, [], CPU, parents=after).padding
    assert padding is not None
    starts = torch.tensor([0, *lengths]).cumsum(0).tolist()
    line, keys, start = torch.arange(sum(lengths)), padding.keys, 0
    assert line[keys.gather][keys.inverse].equal(line)
    found = []
    for (count, width), (_, own) in zip(keys.shapes, padding.queries.shapes, strict=True):
        for _ in range(count):
            row = keys.gather[start : start + width].tolist()
            j = starts.index(row[width - own])
            prefix = after[j]
            assert row[: width - own] == list(
                range(starts[prefix], starts[prefix + 1]) if prefix >= 0 else []
            )
            real = row[width - own :][: lengths[j]]
            assert real == list(range(starts[j], starts[j + 1]))
            found.append(j)
            start += width
    assert sorted(found) == list(range(len(lengths)))
    # where a token stands again is told, so that its gradients are summed
    again = {int(p): int(first) + t for first, rows in keys.copies for row in rows for t, p in enumerate(row)}
    assert len(again) == sum(lengths[j] for j in after if j >= 0)
    assert all(
        keys.gather[place] == token != place or keys.inverse[token] != place for place, token in again.items()
    )


@given(LENGTHS)
def test_padding_is_bounded(lengths: list[int]) -> None:
    padded = sum(count * width for count, width in queries_of(lengths).shapes)
    assert padded <= pass_plan.MAX_PADDING_RATIO * sum(lengths)


def test_examples_of_one_length_share_a_bucket_without_padding() -> None:
    padding = queries_of([4, 4, 4])
    assert padding.shapes == ((3, 4),)
    assert padding.gather.tolist() == padding.inverse.tolist() == list(range(12))


@given(LENGTHS)
def test_positions_count_from_zero_in_each_example(lengths: list[int]) -> None:
    assert pass_plan.positions(lengths).tolist() == [i for length in lengths for i in range(length)]


def test_a_batch_of_sequences_is_cut_by_adapter() -> None:
    plan = pass_plan.sequences([2, 0, 3])
    assert plan.size == 5
    assert [(s.adapter, s.start, s.stop) for s in plan.segments] == [(0, 0, 2), (1, 2, 2), (2, 2, 5)]


def test_the_running_layout_is_put_back_whatever_happens() -> None:
    outer, inner = pass_plan.sequences([1]), pass_plan.sequences([2])
    assert pass_plan.active_plan() is None
    with pass_plan.use_plan(outer):
        with pass_plan.use_plan(inner):
            assert pass_plan.active_plan() is inner
        assert pass_plan.active_plan() is outer
    with pytest.raises(KeyError), pass_plan.use_plan(outer):
        raise KeyError
    assert pass_plan.active_plan() is None
