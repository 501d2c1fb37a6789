from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shepherd import select
from shepherd.core import ClientInfo, seed_for
from shepherd.errors import FederationError
from shepherd.settings import FederationTable

WAYS = ["uniform", "poisson", "size-weighted", "round-robin", "all"]


def clients(*examples):
    return [ClientInfo(name=f"c{k}", examples=n) for k, n in enumerate(examples)]


def draw(way, infos, share, round=0, seed=0):
    table = FederationTable(select=way, share=share, weights="equal")
    return select.selector(table)(infos, round, seed)


@given(st.sampled_from(WAYS), st.integers(1, 40), st.floats(0.001, 1.0), st.integers(0, 9), st.integers(0))
def test_names_are_distinct_in_client_order_and_the_seed_decides(way, number, share, round, seed):
    infos = clients(*range(1, number + 1))
    cohort = draw(way, infos, share, round, seed)
    places = [int(name[1:]) for name in cohort]
    assert places == sorted(set(places))
    assert len(cohort) >= (way != "poisson")
    assert cohort == draw(way, infos, share, round, seed)


@pytest.mark.parametrize(
    ("number", "share", "size"), [(100, 0.05, 5), (10, 0.05, 1), (3, 0.5, 2), (7, 1.0, 7)]
)
def test_a_share_is_the_nearest_number_and_at_least_one(number, share, size):
    for way in ("uniform", "size-weighted", "round-robin"):
        assert len(draw(way, clients(*[1] * number), share)) == size


def test_uniform_asks_every_client_equally_often():
    counts = Counter(n for seed in range(2000) for n in draw("uniform", clients(1, 9, 99, 1), 0.5, 0, seed))
    # each is Binomial(2000, 1/2), deviation 22
    assert all(abs(count - 1000) < 100 for count in counts.values())
    assert len(counts) == 4


def test_poisson_flips_a_coin_for_each_client_and_may_draw_none():
    sizes = [len(draw("poisson", clients(*[1] * 20), 0.1, 0, seed)) for seed in range(2000)]
    assert np.mean(sizes) == pytest.approx(2.0, abs=0.15)  # Binomial(20, 0.1)
    assert np.var(sizes) == pytest.approx(1.8, abs=0.3)
    assert min(sizes) == 0
    ones = [len(draw("poisson", clients(*[1] * 20), 0.001, 0, seed)) for seed in range(2000)]
    assert np.mean(ones) == pytest.approx(1.0, abs=0.12)  # the chance is at least 1 / 20


def test_size_weighted_draws_in_proportion_to_examples():
    counts = Counter(draw("size-weighted", clients(1, 2, 7), 0.33, 0, seed)[0] for seed in range(3000))
    assert [counts[f"c{k}"] / 3000 for k in range(3)] == pytest.approx([0.1, 0.2, 0.7], abs=0.04)


def test_size_weighted_never_draws_a_client_without_examples():
    assert draw("size-weighted", clients(0, 5, 0, 1), 1.0) == ("c1", "c3")
    with pytest.raises(FederationError, match="no client has an example"):
        draw("size-weighted", clients(0, 0), 1.0)


def test_round_robin_asks_all_before_it_asks_one_again():
    infos = clients(*[1] * 5)
    cohorts = [draw("round-robin", infos, 0.4, round, seed_for(0, round)) for round in range(5)]
    assert cohorts == [("c0", "c1"), ("c2", "c3"), ("c0", "c4"), ("c1", "c2"), ("c3", "c4")]


def test_all_asks_all_whatever_the_share():
    assert draw("all", clients(1, 0, 3), 0.1) == ("c0", "c1", "c2")


@pytest.mark.parametrize("way", ["uniform", "poisson", "size-weighted"])
def test_another_seed_draws_another_cohort(way):
    assert len({draw(way, clients(*range(1, 21)), 0.25, 0, seed) for seed in range(20)}) > 10


@pytest.mark.parametrize("way", WAYS)
def test_no_client_at_all_is_an_error(way):
    with pytest.raises(FederationError, match="no client to ask"):
        draw(way, [], 1.0)
