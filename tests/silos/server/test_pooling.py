"""One site has its part of a held-out loss and no more, whatever it says."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shepherd.silos.protocol.wire import Scores
from shepherd.silos.server.pooling import MAX_ROW_CATEGORIES, MAX_SITE_CATEGORIES, pooled

HONEST = {f"s{k}": Scores(client=f"s{k}", round=0, categories={"qa": (250.0, 100)}) for k in range(9)}


def scores(site: str, categories: dict[str, tuple[float, int]]) -> Scores:
    return Scores(client=site, round=0, categories=categories)


def test_by_hand() -> None:
    row = pooled(
        {
            "a": scores("a", {"qa": (2.0, 4), "a": (3.0, 1)}),
            "b": scores("b", {"qa": (4.0, 4), "b": (3.0, 1)}),
            "c": "policy metrics of c keep heldout",
        },
        0.5,
    )
    # each site over its five tokens: 1 and 1.4
    assert row["client"] == {"a": 1.0, "b": 1.4}
    assert row["loss"] == pytest.approx(1.2)
    assert row["category"] == {"a": 3.0, "b": 3.0, "qa": 0.75}
    assert row["left_out"] == {"c": "policy metrics of c keep heldout"}


def test_a_site_with_a_thousand_dear_categories_is_left_out_by_name() -> None:
    row = pooled({**HONEST, "evil": scores("evil", {f"x{k}": (1e12, 1) for k in range(1000)})}, 0.5)
    assert row["loss"] == 2.5
    assert row["category"] == {"qa": 2.5}
    assert "1000 categories" in row["left_out"]["evil"]


def test_a_site_with_many_small_categories_of_its_own_counts_by_its_tokens() -> None:
    own = {f"mine {k}": (9.5, 1) for k in range(MAX_SITE_CATEGORIES)}
    row = pooled({**HONEST, "odd": scores("odd", own)}, 0.5)
    assert row["loss"] == pytest.approx((9 * 100 * 2.5 + 100 * 9.5) / 1000)


def test_nats_and_tokens_of_one_site_have_their_bounds() -> None:
    row = pooled({**HONEST, "evil": scores("evil", {"qa": (1e12, 1)})}, 0.5)
    assert row["client"]["evil"] == 50.0
    assert row["loss"] == pytest.approx((900 * 2.5 + 50.0) / 901)
    row = pooled({**HONEST, "evil": scores("evil", {"qa": (5e11, 10**11)})}, 0.5)
    assert row["loss"] == pytest.approx((2.5 + 5.0) / 2)


def test_many_names_over_many_sites_are_pooled() -> None:
    many = {
        f"s{k}": scores(f"s{k}", {"qa": (1.0, 1), **{f"{k} {j}": (2.0, 1) for j in range(90)}})
        for k in range(9)
    }
    row = pooled(many, 0.5)
    assert len(row["category"]) <= MAX_ROW_CATEGORIES
    assert row["category"]["qa"] == 1.0
    assert row["category"]["other"] == 2.0
    assert row["loss"] == pytest.approx((1 + 90 * 2) / 91)


@pytest.mark.parametrize(
    "replies", [{}, {"a": "it was not asked"}, {"a": scores("a", {"qa": (math.nan, 3)})}]
)
def test_of_nothing_there_is_no_row(replies: dict[str, Scores | str]) -> None:
    assert pooled(replies, 0.5) == {}


PAIR = st.tuples(st.floats(allow_nan=True), st.integers(0, 2**63 - 1))


@given(st.dictionaries(st.sampled_from("abcd"), st.dictionaries(st.text(max_size=3), PAIR, max_size=5)))
def test_whatever_sites_say_a_loss_is_a_loss(told: dict[str, dict[str, tuple[float, int]]]) -> None:
    row = pooled({site: scores(site, pairs) for site, pairs in told.items()}, 0.5)
    assert not row or 0 <= row["loss"] <= 50.0 * (1 + 1e-9)
