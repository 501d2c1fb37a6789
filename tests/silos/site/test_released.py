"""What leaves of losses: never of fewer examples than allowed, nor any difference of two that is."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shepherd.core import Adapter
from shepherd.data.cursor import visit
from shepherd.settings import DataTable
from shepherd.silos.site import released
from shepherd.silos.site.site_settings import PolicyTable, ScoringTable

NAMES = st.lists(st.sampled_from(["a", "b", "c", "d", released.OTHER]), max_size=40)


@given(NAMES, st.integers(1, 12))
def test_each_number_of_a_score_has_enough_behind_it(names: list[str], least: int) -> None:
    sums, tokens = np.arange(len(names), dtype=np.float64), np.full(len(names), 2)
    found = released.scores(sums, tokens, names, least)
    counts = Counter(names)
    small = [name for name in names if counts[name] < least or name == released.OTHER]
    for name, score in found.items():
        of = [i for i, each in enumerate(names) if (released.OTHER if each in small else each) == name]
        assert score.examples == len(of) >= least
        assert score.tokens == 2 * len(of)
        assert score.mean == released.rounded(sum(of) / (2 * len(of)), 2 * len(of))
    assert {name: score.examples for name, score in found.items()} == released.behind(names, least)
    whole = {name for name in counts if counts[name] >= least and name != released.OTHER}
    assert set(found) - {released.OTHER} == whole
    assert (released.OTHER in found) == (len(small) >= least)


@given(
    size=st.integers(16, 90),
    least=st.integers(1, 16),
    batch=st.integers(1, 20),
    lengths=st.lists(st.integers(1, 4), min_size=2, max_size=12),
)
def test_no_difference_of_told_visits_is_of_a_handful(
    size: int, least: int, batch: int, lengths: list[int]
) -> None:
    """The parts that told visits cut an epoch into, and what they leave of it, are large or empty."""
    position, borders = 0, {0}
    for steps in lengths:
        before = position
        taken, position = visit(size, before, max_steps=steps, batch_size=batch, seed=0, min_examples=least)
        start = position - sum(map(len, taken))
        if position - start < least:  # it is refused
            position = before
            continue
        if all(released.cuts_fairly(size, each, least) for each in (start, position)):
            borders |= {start, position}
    ends = {*range(0, position + size + 1, size)}
    for epoch in range(position // size + 1):
        cuts = sorted(b for b in borders | ends if epoch * size <= b <= (epoch + 1) * size)
        assert all(after - before >= least for before, after in pairwise(cuts))


@given(st.floats(0.0, released.CAP_NATS), st.integers(1, 10**6))
def test_a_token_moves_a_mean_by_one_step_at_most(mean: float, tokens: int) -> None:
    found = released.rounded(mean, tokens)
    assert found == round(found, released.LOSS_DIGITS)
    after = released.rounded(mean + released.CAP_NATS / tokens, tokens)
    step = max(released.CAP_NATS / tokens, 10**-released.LOSS_DIGITS)
    assert after - found <= step + 10**-released.LOSS_DIGITS + 1e-9
    assert abs(found - mean) <= (step + 10**-released.LOSS_DIGITS) / 2 + 1e-9


def test_a_run_renders_as_scored_only_where_every_token_is_the_same() -> None:
    data = DataTable(source="", template="chat", max_tokens=512)
    scoring = ScoringTable(template="chat")
    assert released.is_rendered_as_scored(data, scoring)
    for change in (
        {"template": "plain"},
        {"max_tokens": 513},
        {"system": ""},
        {"date": "2026-11-28"},
        {"template_options": {"enable_thinking": False}},
    ):
        assert not released.is_rendered_as_scored(data.model_copy(update=change), scoring)


def adapter(a: float, b: float) -> Adapter:
    return Adapter({"q.lora_A.weight": [[a]], "q.lora_B.weight": [[b]]})


def test_an_adapter_changes_nothing_where_each_b_is_zero() -> None:
    assert released.is_blank(adapter(5.0, 0.0))
    assert not released.is_blank(adapter(0.0, 1e-30))
    assert not released.is_blank(Adapter({"x": [0.0]}))
    assert not released.is_blank(Adapter())


def test_an_adapter_is_near_by_the_length_of_the_sites_own_update() -> None:
    trained = adapter(1.0, 1.0)
    assert released.is_near(adapter(1.0, 1.0 + 0.9 * released.MAX_DISTANCE_RATIO), 1, trained, 0, moved=1.0)
    assert not released.is_near(
        adapter(1.0, 1.0 + 1.1 * released.MAX_DISTANCE_RATIO), 1, trained, 0, moved=1.0
    )
    far = adapter(1.0, 1.0 + 0.9 * released.MAX_DISTANCE_RATIO)
    near = [round for round in range(-1, 30) if released.is_near(far, round + 4, trained, 4, moved=1.0)]
    assert near == [*range(1, released.MAX_ROUNDS_SINCE_TRAINED + 1)]
    most = released.MAX_DISTANCE_RATIO * released.MAX_COUNTED_LENGTH
    assert released.is_near(adapter(1.0, 1.0 + 0.9 * most), 1, trained, 0, moved=1e9)
    assert not released.is_near(adapter(1.0, 1.0 + 1.1 * most), 1, trained, 0, moved=1e9)
    assert not released.is_near(Adapter({"x": [1.0]}), 1, trained, 0, moved=9.0)
    assert not released.is_near(adapter(np.nan, 1.0), 1, trained, 0, moved=9.0)


@pytest.mark.parametrize(
    ("comparable", "known", "told"),
    [
        (True, True, {"loss", "tokens", "trained_tokens", "examples", "steps"}),
        (True, False, {"tokens", "trained_tokens", "examples", "steps"}),
        (False, True, {"examples", "steps"}),
    ],
)
def test_what_is_told_of_a_visit(comparable: bool, known: bool, told: set[str]) -> None:
    metrics = {"loss": 1.23456, "tokens": 9e4, "trained_tokens": 5e4, "examples": 16.0, "steps": 2.0}
    found = released.of_a_visit(metrics, comparable=comparable, known=known)
    assert set(found) == told
    assert found.get("loss", 1.23) == 1.23


def test_only_listed_metrics_leave() -> None:
    metrics = {"loss": 1.5, "examples": 9.0, "canary": 3.0}
    assert released.released_metrics(PolicyTable(metrics=("loss", "steps")), metrics) == {"loss": 1.5}
