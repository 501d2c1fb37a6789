from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.quadratic import chosen

from shepherd.core import ClientInfo, seed_for, share_of
from shepherd.errors import FederationError, SettingsError
from shepherd.selections import shuffled


def clients(*examples):
    return [ClientInfo(name=f"c{k}", examples=n) for k, n in enumerate(examples)]


def draw(way, infos, share, round=0, seed=0):
    return chosen(way, **({} if way == "all" else {"share": share}))(infos, round, seed)


@pytest.mark.parametrize(
    ("number", "share", "size"), [(100, 0.05, 5), (10, 0.05, 1), (3, 0.5, 2), (7, 1.0, 7)]
)
def test_a_share_is_the_nearest_number_and_at_least_one(number, share, size):
    for way in ("uniform", "size-weighted", "round-robin"):
        if way != "size-weighted" or share < 1:
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


def test_size_weighted_draws_each_client_by_its_size_exactly():
    """Sizes 10 to 40, three of eight: every one of the 180 first places there are, over many orders."""
    sizes = [10, 10, 10, 20, 20, 30, 40, 40]
    counts = Counter(
        n for seed in range(6000) for n in draw("size-weighted", clients(*sizes), 0.375, 0, seed)
    )
    for k, size in enumerate(sizes):
        chance = 3 * size / 180
        assert counts[f"c{k}"] / 6000 == pytest.approx(
            chance, abs=4.5 * np.sqrt(chance * (1 - chance) / 6000)
        )


@given(
    st.lists(st.integers(0, 50), min_size=1, max_size=20).filter(any),
    st.floats(0.01, 0.9),
    st.integers(0, 5),
)
def test_size_weighted_has_the_exact_chances_or_says_why_not(sizes, share, seed):
    """All the places that the draw may begin at, one by one, instead of a simulation."""
    infos, whole = clients(*sizes), sum(sizes)
    number = share_of(len(infos), share)
    if number * max(sizes) > whole:
        with pytest.raises(FederationError, match=r"client c\d+ holds .* cannot be drawn by its size; set"):
            draw("size-weighted", infos, share, 0, seed)
        return
    cohort = draw("size-weighted", infos, share, 0, seed)
    assert len(set(cohort)) == len(cohort) == number
    order = np.random.default_rng(seed).permutation(len(sizes))
    ends = number * np.cumsum(np.array(sizes)[order])
    places = np.arange(whole)[:, None] + whole * np.arange(number)
    hits = np.bincount(order[np.searchsorted(ends, places.ravel(), side="right")], minlength=len(sizes))
    assert hits.tolist() == [number * size for size in sizes]  # of `whole` beginnings


def test_the_mean_of_a_size_weighted_cohort_is_the_mean_by_sizes():
    """FedAvg's n_k / n in expectation: 1000, 400 and 300 examples, and two clients with 250 and 150."""
    sizes, values = np.array([1000, 400, 300, 250, 150]), np.array([1.0, -2.0, 5.0, 0.5, 7.0])
    means = [
        np.mean([values[int(name[1:])] for name in draw("size-weighted", clients(*sizes), 0.4, 0, seed)])
        for seed in range(8000)
    ]
    assert np.mean(means) == pytest.approx(values @ sizes / sizes.sum(), abs=4.5 * np.std(means) / 8000**0.5)


def test_size_weighted_is_refused_where_sizes_cannot_be_followed():
    with pytest.raises(FederationError, match=r"c0 holds 1,000 of 1,400 .* so that 1 or fewer are drawn"):
        draw("size-weighted", clients(1000, 100, 100, 100, 100), 0.6)
    assert len(draw("size-weighted", clients(1000, 100, 100, 100, 100), 0.2)) == 1
    assert draw("size-weighted", clients(0, 5, 0, 0), 0.25) == ("c1",)
    with pytest.raises(FederationError, match="no client holds an example"):
        draw("size-weighted", clients(0, 0), 0.9)


def test_round_robin_asks_all_before_it_asks_one_again():
    infos = clients(*[1] * 5)
    cohorts = [draw("round-robin", infos, 0.4, round, seed_for(0, round)) for round in range(5)]
    assert cohorts == [("c0", "c1"), ("c2", "c3"), ("c0", "c4"), ("c1", "c2"), ("c3", "c4")]


def test_all_asks_all():
    assert draw("all", clients(1, 0, 3), 0.1) == ("c0", "c1", "c2")


def test_all_clients_are_not_drawn_by_size():
    with pytest.raises(SettingsError, match="share = 1 leaves no draw by size"):
        draw("size-weighted", clients(1, 2), 1.0)


@pytest.mark.parametrize("way", ["uniform", "poisson", "size-weighted"])
def test_another_seed_draws_another_cohort(way):
    assert len({draw(way, clients(*range(10, 30)), 0.25, 0, seed) for seed in range(20)}) > 10


@pytest.mark.parametrize("share", [1e-310, 1e-7])
def test_a_shuffled_epoch_is_not_longer_than_any_run(share):
    with pytest.raises(SettingsError, match=r"selection\.share = .* raise it"):
        shuffled.build(shuffled.Config(share=share))
