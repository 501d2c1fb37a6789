from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.quadratic import chosen

from shepherd.core import ClientInfo, seed_for, share_of
from shepherd.errors import FederationError, SettingsError
from shepherd.selections import oort, shuffled


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


def heard(losses, examples=10, asked=3):
    """Clients with these losses: None for one that told none, and "new" for one that was never asked."""
    return [
        ClientInfo(name=f"c{k}", examples=examples)
        if loss == "new"
        else ClientInfo(name=f"c{k}", examples=examples, asked=asked, loss=loss)
        for k, loss in enumerate(losses)
    ]


LOSSES = st.lists(st.one_of(st.none(), st.just("new"), st.floats(0, 50)), min_size=1, max_size=20)


@pytest.mark.parametrize("way", ["power_of_choice", "oort"])
@given(losses=LOSSES, share=st.floats(0.01, 1.0), round=st.integers(0, 50), seed=st.integers(0, 99))
def test_selections_by_loss_draw_the_share_whatever_is_known(way, losses, share, round, seed):
    infos = heard(losses)
    cohort = chosen(way, share=share)(infos, round, seed)
    assert len(set(cohort)) == len(cohort) == share_of(len(infos), share)


def test_power_of_choice_takes_the_largest_losses_of_its_candidates():
    infos = heard([0.5, 4.0, 1.0, 3.0, 2.0, 0.1])
    assert chosen("power_of_choice", share=0.34, candidates=50.0)(infos, 0, 0) == ("c1", "c3")
    counts = Counter(
        name for seed in range(3000) for name in chosen("power_of_choice", share=0.17)(infos, 0, seed)
    )
    # three of six are candidates: the largest is one of them in 10 of 20 ways, and so on
    assert counts["c1"] / 3000 == pytest.approx(0.5, abs=0.04)
    assert counts["c3"] / 3000 == pytest.approx(0.3, abs=0.04)
    assert counts["c4"] / 3000 == pytest.approx(0.15, abs=0.03)
    assert counts["c2"] / 3000 == pytest.approx(0.05, abs=0.02)
    assert counts["c0"] == counts["c5"] == 0


def test_power_of_choice_with_one_candidate_a_place_is_the_uniform_draw():
    infos = heard([50.0, 0.0, 0.0, 0.0])
    counts = Counter(
        name
        for seed in range(2000)
        for name in chosen("power_of_choice", share=0.25, candidates=1.0)(infos, 0, seed)
    )
    assert all(abs(count - 500) < 100 for count in counts.values())


def test_who_was_never_asked_comes_first_and_who_told_nothing_is_in_the_middle():
    draw = chosen("power_of_choice", share=0.5, candidates=50.0)
    assert draw(heard([9.0, "new", 8.0, "new"]), 0, 0) == ("c1", "c3")
    untold = heard([9.0, None, 2.0, 1.0, 0.5])  # the one that told nothing counts with the median, 1.5
    assert chosen("power_of_choice", share=0.4, candidates=50.0)(untold, 0, 0) == ("c0", "c2")
    assert chosen("power_of_choice", share=0.6, candidates=50.0)(untold, 0, 0) == ("c0", "c1", "c2")
    assert draw(heard([None, None]), 0, 0) in (("c0",), ("c1",))


def test_oorts_utility_by_hand():
    """Losses 1, 2 and 4 of 10, 10 and 5 examples, last asked in rounds 1, 2 and 4, now the fifth."""
    infos = [
        ClientInfo(name=f"c{k}", examples=examples, asked=last, loss=loss)
        for k, (examples, last, loss) in enumerate([(10, 0, 1.0), (10, 1, 2.0), (5, 3, 4.0)])
    ]
    uncertain = [np.sqrt(0.1 * np.log(5) / last) for last in (1, 2, 4)]
    assert oort.utility(infos, 5) == pytest.approx(np.array([0, 1, 1]) + uncertain)


def test_oort_explores_a_share_that_falls_and_then_asks_who_has_most_to_give():
    infos = heard(["new"] * 10 + [1.0] * 9 + [40.0])
    draw = chosen("oort", share=0.5, explore=0.8, explore_decay=0.5, explore_least=0.2)
    for round, new in ((0, 8), (1, 4), (2, 2), (9, 2)):
        cohorts = [draw(infos, round, seed) for seed in range(30)]
        assert {sum(int(name[1:]) < 10 for name in cohort) for cohort in cohorts} == {new}
    # the one with a large loss is among the eight of ten far more often than another
    counts = Counter(name for seed in range(300) for name in draw(infos, 9, seed))
    assert counts["c19"] >= 290
    assert max(counts[f"c{k}"] for k in range(10, 19)) < 280


def test_oort_draws_near_the_best_alone():
    """Of utilities 0 to 1 in tenths, two places and a cut-off of 0.95: the last of the best is 0.9."""
    infos = heard([k / 10 for k in range(11)])
    draw = chosen("oort", share=0.18, explore_least=0.0)
    asked = {name for seed in range(200) for name in draw(infos, 0, seed)}
    assert asked == {"c9", "c10"}
    wide = chosen("oort", share=0.18, explore_least=0.0, cutoff=0.5)
    asked = {name for seed in range(400) for name in wide(infos, 0, seed)}
    assert asked == {f"c{k}" for k in range(5, 11)}


def test_oort_caps_a_loss_that_is_far_above_all_others():
    infos = heard([1.0] * 38 + [2.0, 50.0])
    assert oort.utility(infos, 1)[-2:].tolist() == [1.0, 1.0]
