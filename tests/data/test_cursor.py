"""Law 8: every example is reached, and no batch holds one twice."""

from math import ceil

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shepherd.data.cursor import coverage, taken, visit

SIZES, SEEDS, BATCHES = st.integers(1, 60), st.integers(0, 5), st.integers(1, 40)


@given(size=SIZES, batch=BATCHES, steps=st.integers(1, 5), seed=SEEDS)
def test_every_example_is_reached_by_small_visits(size, batch, steps, seed):
    position, seen = 0, set()
    for _ in range(ceil(size / min(batch, size) / steps) + 1):
        taken, after = visit(size, position, max_steps=steps, batch_size=batch, seed=seed)
        assert len(taken) == steps
        assert after - position == sum(len(step) for step in taken)
        seen |= {int(index) for step in taken for index in step}
        position = after
        assert coverage(size, position) == len(seen) / size
    assert seen == set(range(size))


@given(size=SIZES, position=st.integers(0, 200), batch=BATCHES, seed=SEEDS)
def test_one_epoch_takes_as_many_as_there_are_from_wherever_the_cursor_is(size, position, batch, seed):
    steps, after = visit(size, position, batch_size=batch, seed=seed)
    assert after == position + size
    for step in steps:
        assert 1 <= len(step) <= batch
        assert len(set(step.tolist())) == len(step)
    if position % size == 0:
        assert sorted(np.concatenate(steps).tolist()) == list(range(size))


@given(size=SIZES, seed=SEEDS, cuts=st.lists(st.integers(1, 4), min_size=1, max_size=6))
def test_visits_go_on_where_the_last_one_stopped(size, seed, cuts):
    position, apart = 0, []
    for cut in cuts:
        steps, position = visit(size, position, max_steps=cut, batch_size=1, seed=seed)
        apart += [int(step[0]) for step in steps]
    together, end = visit(size, 0, max_steps=sum(cuts), batch_size=1, seed=seed)
    assert [int(step[0]) for step in together] == apart
    assert position == end == sum(cuts)


def test_epochs_differ_and_seeds_differ():
    def order(position, seed):
        return np.concatenate(visit(50, position, batch_size=7, seed=seed)[0]).tolist()

    assert order(0, 1) == order(0, 1)
    assert order(0, 1) != order(50, 1)
    assert order(0, 1) != order(0, 2)


@pytest.mark.parametrize(("epochs", "taken"), [(0.5, 5), (2, 20), (0.01, 1), (1.25, 12), (None, 10)])
def test_epochs_count_examples(epochs, taken):
    assert visit(10, 3, epochs=epochs, batch_size=4, seed=0)[1] == 3 + taken


def test_a_batch_never_straddles_two_epochs():
    steps, _ = visit(10, 0, epochs=2, batch_size=4, seed=0)
    assert [len(step) for step in steps] == [4, 4, 2, 4, 4, 2]


def test_the_global_generator_is_not_touched():
    before = np.random.get_state()[1].tolist()  # noqa: NPY002
    visit(10, 0, batch_size=4, seed=0)
    assert np.random.get_state()[1].tolist() == before  # noqa: NPY002


LEAST = st.integers(1, 12)


@given(size=SIZES, batch=BATCHES, least=LEAST, lengths=st.lists(st.integers(1, 5), max_size=6), seed=SEEDS)
def test_no_step_is_shorter_than_the_shortest_and_every_example_is_reached(size, batch, least, lengths, seed):
    position, taken = 0, []
    for count in lengths:
        steps, position = visit(size, position, max_steps=count, batch_size=batch, seed=seed, min_batch=least)
        assert len(steps) == count
        taken += steps
    assert all(min(least, batch, size) <= len(step) < batch + least for step in taken)
    assert all(len(set(step.tolist())) == len(step) for step in taken)
    # nothing was passed over: epoch after epoch, whole
    order = np.concatenate([*taken, np.array([], np.int64)])
    for epoch in range(position // size):
        assert set(order[epoch * size : (epoch + 1) * size].tolist()) == set(range(size))


@given(size=SIZES, position=st.integers(0, 200), batch=BATCHES, least=LEAST, epochs=st.floats(0.5, 3.0))
def test_epochs_end_where_no_short_step_is_left(size, position, batch, least, epochs):
    batch, least = max(batch, least), min(least, size)
    _, position = visit(size, position, max_steps=2, batch_size=batch, seed=0, min_batch=least)
    steps, after = visit(size, position, epochs=epochs, batch_size=batch, seed=0, min_batch=least)
    assert abs(sum(map(len, steps)) - max(1, round(epochs * size))) < least
    if sum(map(len, steps)) >= least:
        assert all(least <= len(step) < batch + least for step in steps)
    assert after % size == 0 or size - after % size >= least


@given(
    size=SIZES,
    batch=st.integers(1, 20),
    least=LEAST,
    fewest=st.integers(1, 24),
    length=st.one_of(
        st.fixed_dictionaries({"max_steps": st.integers(1, 5)}),
        st.fixed_dictionaries({"epochs": st.floats(0.1, 2.0)}),
    ),
    seed=SEEDS,
)
def test_a_visit_of_too_few_different_examples_begins_with_the_next_epoch(
    size, batch, least, fewest, length, seed
):
    """So each has as many as one from the start of an epoch has, and none is repeated without end."""
    how = {"batch_size": batch, "seed": seed, "min_batch": least, **length}
    first = len(set(np.concatenate(visit(size, 0, **how)[0]).tolist()))
    position = 0
    for _ in range(6):
        steps, after = visit(size, position, **how, min_examples=fewest)
        taken = np.concatenate(steps)
        start = after - len(taken)
        assert len(set(taken.tolist())) >= min(fewest, first)
        plain, end = visit(size, position, **how)
        if start % size or start == position or len(set(np.concatenate(plain).tolist())) >= fewest:
            assert (after, [step.tolist() for step in steps]) == (end, [step.tolist() for step in plain])
        else:
            assert position < start < position + size
        assert after > position
        position = after


def test_of_thirty_examples_two_steps_of_eight_go_on_for_ever():
    position, taken = 0, np.zeros(30, int)
    for _ in range(300):
        steps, position = visit(30, position, max_steps=2, batch_size=8, seed=1, min_batch=8, min_examples=16)
        assert len(set(np.concatenate(steps).tolist())) >= 16
        taken[np.concatenate(steps)] += 1
    assert taken.min() > 0.8 * taken.mean()  # none is left out


@pytest.mark.parametrize(("size", "position", "batch"), [(0, 0, 1), (3, -1, 1), (3, 0, 0)])
def test_numbers_that_make_no_sense(size, position, batch):
    with pytest.raises(ValueError, match="must be positive"):
        visit(size, position, batch_size=batch, seed=0)


@given(
    size=SIZES,
    batch=BATCHES,
    least=LEAST,
    visits=st.integers(1, 7),
    tuning=st.one_of(
        st.builds(lambda steps: {"max_steps": steps}, st.integers(1, 9)),
        st.builds(lambda epochs: {"epochs": epochs}, st.floats(0.01, 3.0)),
        st.just({}),
    ),
)
def test_amounts_are_those_of_the_visits_themselves(size, batch, least, visits, tuning):
    position, steps = 0, []
    for _ in range(visits):
        made, position = visit(size, position, batch_size=batch, seed=0, min_batch=least, **tuning)
        steps += made
    found = taken(size, visits=visits, batch_size=batch, min_batch=least, **tuning)
    assert found == (len(steps), sum(map(len, steps)))
