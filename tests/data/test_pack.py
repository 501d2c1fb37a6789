"""Rows hold whole examples, every one once, and are about as few as can be."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shepherd.data.pack import pack

LENGTHS = st.lists(st.integers(0, 40), max_size=60)


@given(lengths=LENGTHS, capacity=st.integers(1, 50))
def test_every_index_once_in_rows_that_fit(lengths, capacity):
    rows = pack(lengths, capacity)
    assert sorted(index for row in rows for index in row) == list(range(len(lengths)))
    for row in rows:
        assert row == sorted(row)
        assert len(row) == 1 or sum(lengths[index] for index in row) <= capacity
    assert rows == sorted(rows) == pack(lengths, capacity)


@given(lengths=st.lists(st.integers(1, 40), min_size=1, max_size=60), capacity=st.integers(40, 80))
def test_the_bound_of_best_fit_decreasing(lengths, capacity):
    fewest = -(-sum(lengths) // capacity)  # at least so many
    rows = pack(lengths, capacity)
    assert len(rows) <= 2 * fewest  # no two rows could be one
    sizes = sorted(sum(lengths[index] for index in row) for row in rows)
    assert len(sizes) < 2 or sizes[0] + sizes[1] > capacity


def test_a_hand_worked_case():
    # by length: 6, 5 | 4 joins 6, 3 joins 5, 2 joins 5 + 3
    assert pack([4, 2, 6, 3, 5], 10) == [[0, 2], [1, 3, 4]]
    assert pack([], 10) == []
    assert pack([30, 3], 10) == [[0], [1]]
    assert pack([30, 0], 10) == [[0], [1]]


@pytest.mark.parametrize(("lengths", "capacity"), [([1], 0), ([-1], 5)])
def test_numbers_that_make_no_sense(lengths, capacity):
    with pytest.raises(ValueError, match="capacity"):
        pack(lengths, capacity)
