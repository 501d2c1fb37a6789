"""The judge's tables: every number with its interval, and every sentence, even in a narrow log."""

from __future__ import annotations

import io
from typing import Any

from shepherd.ui.terminal.verdict_table import judged

SAID = {
    "model": "judge-1",
    "questions": 20,
    "calls": 60,
    "tokens": 6600,
    "unreadable": 2,
    "says": ["The judge scores [mine] above base: " + "long " * 30 + "end."],
}


def number(value: float, low: float | None, high: float | None) -> dict[str, float | None]:
    return {"value": value, "low": low, "high": high}


def printed(judge: dict[str, Any]) -> list[str]:
    """The lines, with single spaces; a table's are no wider than 80 columns."""
    stream = io.StringIO()
    judged({**SAID, **judge}, stream)
    lines = stream.getvalue().splitlines()
    assert all(len(line) <= 80 for line in lines if line not in SAID["says"])
    return [" ".join(line.split()) for line in lines]


def test_fedit_prints_the_papers_table() -> None:
    row = {
        "first": "local-brainstorming",
        "second": "[mine]",
        "out_of": 200,
        "sum_first": number(114.0, 101.24, 126.5),
        "sum_second": number(131.7, 120.04, 142.0),
        "relative": number(131.7 / 114.0, 1.021, None),
    }
    lines = printed({"protocol": "fedit", "rows": [row], "strengths": []})
    (place,) = [n for n, line in enumerate(lines) if line.endswith("114.0 [mine] 131.7 200 1.155")]
    assert lines[place + 1].endswith(" [101.2, 126.5] [120.0, 142.0] [1.021, -]")
    assert lines[0] == "Judged by judge-1 (fedit, 20 questions)"
    assert SAID["says"][0] in lines
    assert lines[-1] == "60 replies, 6,600 tokens, 2 unreadable."


def test_pairwise_prints_win_rates_and_where_there_are_several_arms_their_strengths() -> None:
    row = {
        "first": "mine",
        "second": "base",
        "win": 12,
        "tie": 5,
        "loss": 3,
        "win_rate": number(0.725, 0.55, 0.9),
        "length_controlled": number(0.7, 0.512, 0.88),
    }
    arms = [{"arm": name, "strength": number(0.5, 0.1, 0.9)} for name in ("other", "base", "mine")]
    lines = printed({"protocol": "pairwise", "rows": [row], "strengths": arms})
    place = lines.index("mine base 12 5 3 72.5 70.0")
    assert lines[place + 1] == "[55.0, 90.0] [51.2, 88.0]"
    assert "other 0.50" in lines
    assert lines.count("[0.10, 0.90]") == 3
    two = printed({"protocol": "pairwise", "rows": [row], "strengths": arms[:2]})
    assert not [line for line in two if line.startswith("other")]


def test_where_nothing_is_judged_yet_only_the_sentences_stand() -> None:
    lines = printed({"protocol": "pairwise", "rows": [], "strengths": []})
    assert lines == [SAID["says"][0], "60 replies, 6,600 tokens, 2 unreadable."]
