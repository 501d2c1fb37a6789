"""Every token stands in one place, padding is bounded, and the running layout is put back."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from shepherd.model import layout

CPU = torch.device("cpu")
LENGTHS = st.lists(st.integers(1, 60), min_size=1, max_size=30)


@given(LENGTHS)
def test_every_token_stands_in_one_bucket_and_comes_back_to_its_place(lengths: list[int]) -> None:
    plan = layout.packed(lengths, [], CPU)
    line = torch.arange(sum(lengths))
    placed = torch.cat([line[bucket.gather][bucket.keep] for bucket in plan.buckets])
    assert sorted(placed.tolist()) == line.tolist()
    assert placed[plan.order].equal(line)


@given(LENGTHS)
def test_a_row_of_a_bucket_is_one_whole_example_from_its_first_token(lengths: list[int]) -> None:
    owner = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    place = torch.from_numpy(layout.positions(lengths))
    found = []
    for bucket in layout.packed(lengths, [], CPU).buckets:
        for row in bucket.gather.view(bucket.count, bucket.width):
            (example,) = owner[row].unique().tolist()
            last = lengths[example] - 1
            assert place[row].tolist() == [min(step, last) for step in range(bucket.width)]
            found.append(example)
    assert sorted(found) == list(range(len(lengths)))


@given(LENGTHS)
def test_padding_is_bounded_in_every_bucket(lengths: list[int]) -> None:
    for bucket in layout.packed(lengths, [], CPU).buckets:
        assert bucket.count * bucket.width <= layout.PADDING_ALLOWED * len(bucket.keep)


def test_examples_of_one_length_share_a_bucket_without_padding() -> None:
    (bucket,) = layout.packed([4, 4, 4], [], CPU).buckets
    assert (bucket.count, bucket.width) == (3, 4)
    assert bucket.gather.tolist() == bucket.keep.tolist() == list(range(12))


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
