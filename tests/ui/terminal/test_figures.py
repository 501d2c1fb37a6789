"""Figures from rows: worked by hand."""

from typing import Any

import pytest

from shepherd.io.progress import Progress
from shepherd.ui.terminal import figures


def row(number: int, seconds: float = 10.0, **more: Any) -> dict[str, Any]:
    return {
        "round": number,
        "cohort": ["a", "b"],
        "loss": 2.0,
        "seconds": {"round": seconds, "tuning": 8.0},
        "tokens": {"seen": 4000, "trained": 900},
        **more,
    }


def progress(**more: Any) -> Progress:
    given: dict[str, Any] = {"clients_done": 1, "clients": 4, "tokens": 300, "loss": 2.5, "seconds": 6.0}
    return Progress(round=1, rounds=5, **{**given, **more})


BASE = {"round": 0, "heldout": {"loss": 3.0}}


@pytest.mark.parametrize(
    ("rows", "now", "left"),
    [
        ([BASE], None, None),
        ([BASE], progress(clients_done=0), None),
        ([BASE], progress(), 6.0 * 4 * 5 - 6.0),  # a quarter of the first of five rounds took 6 s
        ([BASE], progress(round_tokens=900), 6.0 * 3 * 5 - 6.0),  # by its tokens a third
        ([BASE, row(1), row(2, 20), row(3, 12)], None, 2 * 12.0),  # two rounds of the median
        ([BASE, row(1), row(2, 20), row(3, 12)], progress(), 2 * 12.0 - 6.0),
        ([BASE, row(4)], progress(seconds=99.0), 0.0),
        ([BASE, row(5)], None, 0.0),
    ],
)
def test_time_left(rows: list[dict[str, Any]], now: Any, left: float | None) -> None:
    assert figures.time_left(rows, 5, now) == left


def test_tokens_per_second_is_this_rounds_then_the_last_tunings() -> None:
    assert figures.tokens_per_second([BASE], None) is None
    assert figures.tokens_per_second([BASE, row(1)], None) == 500.0
    assert figures.tokens_per_second([BASE, row(1)], progress()) == 50.0
    assert figures.tokens_per_second([BASE, row(1)], progress(tokens=0)) == 500.0


def test_a_sparkline_shows_the_last_values_and_a_flat_line_is_low() -> None:
    assert figures.sparkline([9, 0, 1], width=2) == "▁█"
    assert figures.sparkline([2.0, 2.0]) == "▁▁"
    assert figures.sparkline([]) == ""


def test_a_line_a_round() -> None:
    assert figures.line(BASE, [BASE], 4) == "before training  held out 3.0000"
    scored = row(2, heldout={"loss": 1.25})
    assert figures.line(scored, [BASE, scored], 4) == (
        "round 2/4  clients 2  loss 2.0000  held out 1.2500  500 tokens/s  10 s  left 20 s"
    )
    assert "loss not finite" in figures.line(row(2, loss=None), [row(2)], 4)
    assert "clients 0  no client drawn" in figures.line(row(2, loss=None, cohort=[]), [row(2)], 4)


def test_failures_are_told_by_client_and_reason() -> None:
    assert figures.failures(row(1)) == []
    assert figures.failures(row(1, failures={"b": "late"})) == ["round 1: no usable update from b (late)"]


def test_what_came_late_is_one_sentence() -> None:
    assert figures.late(row(1)) == []
    assert figures.late(row(2, late=["a", "b"], dropped=["b"], carried={"c": 1})) == [
        "round 2: ended without b, whose update is dropped; ended without a, whose update is to come;"
        " took the late update of c (by 1 round)"
    ]
