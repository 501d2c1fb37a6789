"""What every file of `shepherd/selections` keeps to, by the properties that it declares."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.contracts.filling import built

from shepherd import plugins, selections
from shepherd.core import ClientInfo
from shepherd.errors import FederationError

pytestmark = pytest.mark.parametrize("name", plugins.names(selections))
SIZES = st.lists(st.integers(10, 14), min_size=1, max_size=30)


def infos(sizes):
    return [ClientInfo(name=f"c{k}", examples=size) for k, size in enumerate(sizes)]


def selection(name):
    return built(plugins.SELECTION, name)


@given(sizes=SIZES, round=st.integers(0, 9), seed=st.integers(0, 2**64 - 1))
def test_no_client_is_asked_twice_and_the_order_is_the_clients(name, sizes, round, seed):
    cohort = selection(name).cohort(infos(sizes), round, seed)
    places = [int(client.removeprefix("c")) for client in cohort]
    assert places == sorted(set(places))
    assert set(places) <= set(range(len(sizes)))
    assert cohort or selection(name).may_be_empty


@given(sizes=SIZES, round=st.integers(0, 9), seed=st.integers(0, 2**64 - 1))
def test_the_round_and_its_seed_decide_and_no_global_generator_is_read(name, sizes, round, seed):
    before = np.random.get_state()[1].tolist()  # noqa: NPY002
    clients = infos(sizes)
    assert selection(name).cohort(clients, round, seed) == selection(name).cohort(clients, round, seed)
    assert clients == infos(sizes)
    assert np.random.get_state()[1].tolist() == before  # noqa: NPY002


def test_it_asks_the_share_that_it_declares_on_average(name):
    """Over 600 rounds of 20 clients; a coin each has the deviation sqrt(20 p (1 - p) / 600), 0.1 at most."""
    made, clients = selection(name), infos([10] * 20)
    asked = [len(made.cohort(clients, round, round)) for round in range(600)]
    assert 0 < made.share <= 1
    assert np.mean(asked) == pytest.approx(made.size(20), abs=0.5)


def test_every_client_is_asked_at_some_time(name):
    made, clients = selection(name), infos([10, 11, 12, 13, 14])
    seen = {client for round in range(200) for client in made.cohort(clients, round, round)}
    assert seen == {info.name for info in clients}


def test_a_larger_client_is_drawn_more_often_or_it_says_that_size_does_not_matter(name):
    made, clients = selection(name), infos([10] * 5 + [30] * 5)
    drawn = [client for round in range(2000) for client in made.cohort(clients, round, round)]
    large = sum(int(client.removeprefix("c")) >= 5 for client in drawn) / len(drawn)
    assert large == pytest.approx(0.75 if made.by_size else 0.5, abs=0.05)


def test_no_client_at_all_is_an_error(name):
    with pytest.raises(FederationError, match="no client to ask"):
        selection(name).cohort([], 0, 0)
