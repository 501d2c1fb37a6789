"""What a weight may be, and the cap of a round, against a search that knows all weights at once."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shepherd.core import ClientInfo
from shepherd.data.cursor import visit
from shepherd.overrides import parse
from shepherd.rounds import weights as weighing
from shepherd.rounds.weights import Shares, allowed_by

WEIGHTS = st.lists(st.floats(1e-3, 1e9), min_size=1, max_size=30)
SHARE = st.floats(0.1, 1.0)


def allowed(examples: int = 10, **tables: dict[str, object]) -> weighing.Allowed:
    whole = {"model": {"base": "tiny"}, "data": {"source": "world", "max_tokens": 64}, **tables}
    return allowed_by(parse(whole))(ClientInfo(name="a", examples=examples))


@pytest.mark.parametrize(
    ("weights", "tuning", "most"),
    [
        ("equal", {"max_steps": 5}, 1),
        ("examples", {"max_steps": 5, "batch_size": 4}, 29),  # of 10 examples: three epochs may end
        ("examples", {"epochs": 1.25, "batch_size": 4}, 16),
        ("examples", {"batch_size": 1}, 10),
        ("tokens", {"max_steps": 5, "batch_size": 4}, 29 * 64),
        ("tokens", {"epochs": 0.01, "batch_size": 1}, 64),
    ],
)
def test_a_weight_is_bounded_by_the_visit(weights: str, tuning: dict[str, object], most: float) -> None:
    found = allowed(federation={"weights": weights}, tuning=tuning)
    assert (found.least, found.most, found.whole) == (1, most, True)
    assert weights in found.by


def test_counts_are_bounded_by_the_visit() -> None:
    found = allowed(tuning={"max_steps": 5, "batch_size": 4})
    assert found.counts == {"examples": 29, "steps": 5, "tokens": 1856, "trained_tokens": 1856}


@given(
    size=st.integers(1, 200),
    position=st.integers(0, 400),
    length=st.one_of(
        st.builds(lambda steps: {"max_steps": steps}, st.integers(1, 40)),
        st.builds(lambda epochs: {"epochs": epochs}, st.floats(0.01, 3)),
    ),
    batch=st.integers(1, 40),
    share=st.floats(0, 1),
)
def test_every_visit_that_a_site_may_make_is_allowed(
    size: int, position: int, length: dict[str, float], batch: int, share: float
) -> None:
    min_batch = max(1, round(share * batch))  # a site's policy asks for no more than a whole batch
    steps, _ = visit(size, position, batch_size=batch, seed=0, min_batch=min_batch, **length)  # type: ignore[arg-type]
    found = allowed(examples=size, tuning={**length, "batch_size": batch}, federation={"weights": "examples"})
    assert sum(map(len, steps)) <= found.counts["examples"]
    assert sum(map(len, steps)) <= found.most
    assert len(steps) <= found.counts["steps"]


def by_search(weights: list[float], share: float) -> float:
    """The cap by bisection: the largest c with c <= share * sum(min(w, c))."""
    share = max(share, 1 / len(weights))
    low, high = 0.0, 2 * math.fsum(weights)
    for _ in range(200):
        middle = (low + high) / 2
        fits = middle <= share * math.fsum(min(w, middle) for w in weights) * (1 + 1e-12)
        low, high = (middle, high) if fits else (low, middle)
    return low


def added(weights: list[float], share: float) -> Shares:
    shares = Shares(share)
    for weight in weights:
        shares.add(weight)
    return shares


@given(weights=WEIGHTS, share=SHARE)
def test_no_client_counts_for_more_than_its_share(weights: list[float], share: float) -> None:
    cap = added(weights, share).last_cap()
    capped = [min(weight, cap) for weight in weights]
    assert max(capped) <= max(share, 1 / len(weights)) * math.fsum(capped) * (1 + 1e-6)
    assert min(capped) > 0
    assert cap == pytest.approx(by_search(weights, share), rel=1e-6)


@given(weights=WEIGHTS, share=SHARE)
def test_what_was_known_to_pass_is_not_capped_later(weights: list[float], share: float) -> None:
    """The cap grows, so an update that is let through early is never one that had to be capped."""
    shares, caps = Shares(share), []
    for weight in weights:
        shares.add(weight)
        caps.append(shares.cap())
    assert all(later >= earlier * (1 - 1e-9) for earlier, later in pairwise(caps))
    assert shares.last_cap() >= caps[-1] * (1 - 1e-9)
    waiting = sum(weight > caps[-1] * (1 + weighing.WEIGHT_TOLERANCE) for weight in weights)
    assert waiting <= 1 / share + 1e-9


def test_a_share_of_one_is_no_cap_and_two_clients_are_half_each() -> None:
    assert added([1.0, 1e12], 1.0).last_cap() >= 1e12
    assert added([1.0, 1e12], 0.5).last_cap() == 1.0
    assert added([3.0], 0.5).last_cap() == 3.0
    assert added([1.0] * 10, 0.1).last_cap() == pytest.approx(1.0)
