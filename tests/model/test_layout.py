"""Every token stands in one place, padding is bounded, and the running layout is put back."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from shepherd.model import layout

CPU = torch.device("cpu")
LENGTHS = st.lists(st.integers(1, 60), min_size=1, max_size=30)


def padding_of(lengths: list[int]) -> layout.Padding:
    padding = layout.packed(lengths, [], CPU).padding
    assert padding is not None
    return padding


@given(LENGTHS)
def test_every_token_stands_in_one_place_and_comes_back_to_its_own(lengths: list[int]) -> None:
    padding = padding_of(lengths)
    line = torch.arange(sum(lengths))
    assert line[padding.gather][padding.places].equal(line)
    assert len(padding.places.unique()) == len(line)


@given(LENGTHS)
def test_a_row_of_a_bucket_is_one_whole_example_from_its_first_token(lengths: list[int]) -> None:
    owner = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    place = torch.from_numpy(layout.positions(lengths))
    padding, found, start = padding_of(lengths), [], 0
    for bucket in padding.buckets:
        for _ in range(bucket.count):
            row = padding.gather[start : start + bucket.width]
            (example,) = owner[row].unique().tolist()
            last = lengths[example] - 1
            assert place[row].tolist() == [min(step, last) for step in range(bucket.width)]
            # a real token is found at the real place, never at the padding that repeats it
            assert padding.places[row[: last + 1]].tolist() == list(range(start, start + last + 1))
            found.append(example)
            start += bucket.width
    assert sorted(found) == list(range(len(lengths)))
    assert start == len(padding.gather)


@given(LENGTHS)
def test_padding_is_bounded(lengths: list[int]) -> None:
    padded = sum(bucket.count * bucket.width for bucket in padding_of(lengths).buckets)
    assert padded <= layout.PADDING_ALLOWED * sum(lengths)


def test_examples_of_one_length_share_a_bucket_without_padding() -> None:
    padding = padding_of([4, 4, 4])
    assert padding.buckets == (layout.Bucket(count=3, width=4),)
    assert padding.gather.tolist() == padding.places.tolist() == list(range(12))


@given(LENGTHS)
def test_positions_count_from_zero_in_each_example(lengths: list[int]) -> None:
    assert layout.positions(lengths).tolist() == [i for length in lengths for i in range(length)]


def test_a_batch_of_sequences_is_cut_by_adapter() -> None:
    plan = layout.sequences([2, 0, 3])
    assert plan.places == 5
    assert [(s.adapter, s.start, s.stop) for s in plan.segments] == [(0, 0, 2), (1, 2, 2), (2, 2, 5)]


def test_the_running_layout_is_put_back_whatever_happens() -> None:
    outer, inner = layout.sequences([1]), layout.sequences([2])
    assert layout.current() is None
    with layout.running(outer):
        with layout.running(inner):
            assert layout.current() is inner
        assert layout.current() is outer
    with pytest.raises(KeyError), layout.running(outer):
        raise KeyError
    assert layout.current() is None
