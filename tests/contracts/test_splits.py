"""What every file of `shepherd/data/splits` keeps to."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.contracts.filling import built

from shepherd import plugins
from shepherd.data import splits
from shepherd.data.examples import Example, Turn
from shepherd.data.split import SPLIT, split
from shepherd.errors import DataError

pytestmark = pytest.mark.parametrize("name", plugins.names(splits))


def examples_of(kinds):
    """One example a letter, of that category and label; held by one of three clients."""
    return [
        Example(
            turns=(Turn(role="user", text=f"Question {n}"), Turn(role="assistant", text="Answer")),
            category=kind,
            label=kind,
            client=f"client {n % 3}",
            where=f"f.jsonl, line {n}",
        )
        for n, kind in enumerate(kinds)
    ]


def plain(shares):
    return {client: part.tolist() for client, part in shares.items()}


@settings(max_examples=25)
@given(kinds=st.lists(st.sampled_from("abcde"), min_size=1, max_size=80), seed=st.integers(0, 3))
def test_every_example_is_reached_exactly_once_or_it_says_why_not(name, kinds, seed):
    shares, reason = {}, ""
    try:
        shares = split(examples_of(kinds), built(SPLIT, name), seed)
    except DataError as error:
        reason = str(error)
    if reason:
        assert "split.clients" in reason
        assert len(kinds) < 40
        return
    assert sorted(index for part in shares.values() for index in part) == list(range(len(kinds)))
    for part in shares.values():
        assert len(part)
        assert part.tolist() == sorted(part)


def test_the_seed_alone_decides_and_no_global_generator_is_read(name):
    examples = examples_of("abcde" * 40)
    before = np.random.get_state()[1].tolist()  # noqa: NPY002
    one, again, other = (split(examples, built(SPLIT, name), seed) for seed in (1, 1, 2))
    assert plain(one) == plain(again)
    assert list(one) == list(again)
    own = built(SPLIT, name)
    named = bool(own.client_field) or own.by_file
    assert (plain(one) == plain(other)) == named  # the data's own clients are the same for every seed
    assert examples == examples_of("abcde" * 40)
    assert np.random.get_state()[1].tolist() == before  # noqa: NPY002


def test_it_has_the_clients_that_it_was_asked_for_or_those_of_the_data(name):
    rule = built(SPLIT, name)
    shares = split(examples_of("abcde" * 40), rule, 0)
    named = bool(rule.client_field) or rule.by_file
    assert list(shares) == (
        [f"client {k}" for k in range(3)] if named else [f"client-{k}" for k in range(10)]
    )


def test_nothing_to_split_is_an_error(name):
    with pytest.raises(DataError, match="no example to split"):
        split([], built(SPLIT, name), 0)
