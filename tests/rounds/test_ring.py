"""Whether the sums of a run fit, and what wraps around."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shepherd import plugins
from shepherd.errors import SettingsError
from shepherd.overrides import parse
from shepherd.rounds.ring import centred, fewest_in_sum, require_balanced, require_sums
from shepherd.silos.secure import threshold
from shepherd.transforms.fixed_point import levels


def settings(clients=10, *, transform=None, ring_bits=32, secure=True, **tables):
    given = {
        "model": {"base": "tiny"},
        "data": {"source": "world"},
        "federation": {"weights": "equal"},
        "tuning": {"max_steps": 4},
        "transforms": [transform or {"name": "fixed_point"}],
        **({"secure": {"ring_bits": ring_bits}} if secure else {}),
        **tables,
    }
    made = parse(given)
    return made, plugins.method(made), plugins.selection(made), clients


def refused(*parts):
    with pytest.raises(SettingsError) as refusal:
        require_sums(*parts)
    return str(refusal.value)


@given(
    ring_bits=st.sampled_from([32, 64]),
    codes=st.lists(st.integers(-(2**31) // 12, 2**31 // 12), min_size=1, max_size=12),
)
def test_a_sum_that_fits_comes_back_whole(ring_bits, codes):
    total = np.zeros(1, np.uint64)
    for code in codes:
        total = total + np.array([code], np.int64).view(np.uint64)
    assert centred(total % np.uint64(2**32) if ring_bits == 32 else total, ring_bits).tolist() == [sum(codes)]


@pytest.mark.parametrize("edge", [2**31 - 1, -(2**31)])
def test_the_edges_of_a_ring(edge):
    assert centred(np.array([edge], np.int64).view(np.uint64), 32).tolist() == [edge]


@given(st.integers(1, 1000))
def test_more_than_two_thirds_are_in_a_sum_so_two_sums_share_more_than_a_third(asked):
    assert 3 * fewest_in_sum(asked) > 2 * asked
    assert fewest_in_sum(asked) <= asked
    assert 2 * fewest_in_sum(asked) - asked > asked / 3


def test_a_ring_has_room_for_the_largest_codes_of_all_clients_of_a_round_and_not_for_one_more():
    clients = (2**31 - 1) // levels(22)  # 1024
    require_sums(*settings(clients))
    why = refused(*settings(clients + 1))
    assert why.startswith(f"secure.ring_bits = 32 is too small: {clients + 1} clients may add up to")
    assert "set secure.ring_bits = 64, or lower bits" in why
    require_sums(*settings(clients + 1, ring_bits=64))
    require_sums(*settings(clients + 1, secure=False))


def test_the_noise_needs_room_too():
    part = {"name": "skellam", "bits": 22, "noise": 2.0}
    assert "secure.ring_bits = 32 is too small" in refused(*settings(100, transform=part))
    require_sums(*settings(100, transform={**part, "bits": 16}))
    require_sums(*settings(100, transform=part, ring_bits=64))


def test_two_clients_hide_nothing():
    assert "[secure] needs 3 clients in a round" in refused(*settings(2))
    assert "a round asks 2 clients" in refused(*settings(10, selection={"share": 0.2}))
    require_sums(*settings(2, secure=False))


def test_there_are_as_many_shares_of_noise_as_a_sum_may_have_clients():
    def parts(honest, clients, **keys):
        return settings(clients, transform={"name": "skellam", "honest": honest}, **keys)

    assert "honest = 11 shares of noise hide a client, and a round asks 10 clients" in refused(*parts(11, 10))
    assert "honest = 11" in refused(*parts(11, 10, secure=False))
    assert "opens when 7 are in it; set honest = 7 or less" in refused(*parts(8, 10))
    require_sums(*parts(7, 10))
    require_sums(*parts(10, 10, secure=False))


def weighed(largest, weights="size", **tables):
    part = {"name": "fixed_point", "largest_weight": largest}
    federation = {"weights": weights, **tables.pop("federation", {})}
    return settings(transform=part, federation=federation, **tables)[:2]


def unbalanced(*parts):
    with pytest.raises(SettingsError) as refusal:
        require_balanced(*parts)
    return str(refusal.value)


def test_a_sum_of_one_heavy_client_and_light_ones_is_refused():
    sizes = {"a": 2000, "b": 50, "c": 60, "d": 70}
    why = unbalanced(*weighed(2000.0), sizes, 4)
    assert why.startswith("a would be 95% of a sum with the lightest clients")
    assert "open with 3 of 4" in why
    assert "set largest_weight = 110 or less" in why
    require_balanced(*weighed(110.0), sizes, 4)
    assert unbalanced(*weighed(111.0), sizes, 4)
    require_balanced(*weighed(2000.0), {"a": 2000, "b": 900, "c": 1100}, 3)
    require_balanced(*weighed(2000.0), {"a": 2000, "b": 50}, 4)  # the others have not joined yet
    require_balanced(*settings()[:2], sizes, 4)  # all count the same
    lower = {"federation": {"max_share": 0.4}}
    assert "max_share = 0.4" in unbalanced(*weighed(110.0, **lower), sizes, 4)


@given(
    sizes=st.lists(st.integers(1, 10**6), min_size=4, max_size=9),
    largest=st.floats(1.0, 10**6),
    share=st.floats(0.3, 0.9),
    data=st.data(),
)
def test_where_it_is_accepted_no_sum_that_may_be_opened_shows_a_client(sizes, largest, share, data):
    parts = weighed(largest, federation={"max_share": share})
    named = {f"c{number}": size for number, size in enumerate(sizes)}
    try:
        require_balanced(*parts, named, len(sizes))
    except SettingsError:
        return
    opened = data.draw(st.integers(fewest_in_sum(len(sizes)), len(sizes)))
    some = [min(size, largest) for size in data.draw(st.permutations(sizes))[:opened]]
    assert max(some) <= max(share, 1 / opened) * sum(some) * (1 + 1e-6)


def test_a_largest_weight_far_above_the_clients_is_refused():
    """It takes a step for each of them, so that their changes are rounded away."""
    sizes = {"a": 100, "b": 80, "c": 90}
    why = unbalanced(*weighed(6401.0), sizes, 3)
    assert "largest_weight = 6401" in why
    assert "set it near 100" in why
    require_balanced(*weighed(6400.0), sizes, 3)


@pytest.mark.parametrize("asked", [3, 4, 5, 10, 99, 100, 1000])
def test_a_sum_in_one_process_opens_with_as_many_as_the_protocol_asks(asked: int) -> None:
    """The protocol imports nothing of the rest of the package, so the rule stands in both."""
    assert fewest_in_sum(asked) == threshold(asked)
