"""The judge's tables in a terminal of 80 columns: every number with its interval, and every sentence."""

from __future__ import annotations

import io
from typing import Any

from shepherd.ui.terminal.verdict_table import print_verdicts
from tests.ui.terminal.golden import require_golden

JUDGE = {
    "model": "judge-1",
    "questions": 20,
    "calls": 60,
    "tokens": 6600,
    "unreadable": 2,
    "says": ["The judge scores [mine] above base: " + "long " * 30 + "end."],
}


def number(value: float, low: float | None, high: float | None) -> dict[str, float | None]:
    return {"value": value, "low": low, "high": high}


def printed(**more: Any) -> str:
    """What is printed; a table is at most 80 columns wide, a sentence is one line."""
    stream = io.StringIO()
    print_verdicts({**JUDGE, **more}, stream)
    assert all(len(line) <= 80 for line in stream.getvalue().splitlines() if line not in JUDGE["says"])
    return stream.getvalue()


PAIR = {
    "first": "mine",
    "second": "base",
    "win": 12,
    "tie": 5,
    "loss": 3,
    "win_rate": number(0.725, 0.55, 0.9),
    "length_controlled": number(0.7, 0.512, 0.88),
}
STRENGTHS = [{"arm": name, "strength": number(0.5, 0.1, 0.9)} for name in ("other", "base", "mine")]


def test_the_papers_sums_and_their_ratio() -> None:
    row = {
        "first": "local-brainstorming",
        "second": "[mine]",
        "out_of": 200,
        "sum_first": number(114.0, 101.24, 126.5),
        "sum_second": number(131.7, 120.04, 142.0),
        "relative": number(131.7 / 114.0, 1.021, None),
    }
    require_golden("verdicts_fedit", printed(protocol="fedit", rows=[row], strengths=[]))


def test_win_rates_and_the_strengths_of_several_arms() -> None:
    require_golden("verdicts_pairwise", printed(protocol="pairwise", rows=[PAIR], strengths=STRENGTHS))


def test_two_arms_have_no_strengths() -> None:
    require_golden("verdicts_two_arms", printed(protocol="pairwise", rows=[PAIR], strengths=STRENGTHS[:2]))


def test_without_verdicts_there_are_only_sentences() -> None:
    require_golden("verdicts_none", printed(protocol="pairwise", rows=[], strengths=[]))
