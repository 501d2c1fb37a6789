"""The comparison's table in a terminal: the numbers of comparison.json and nothing lost at 80 columns."""

from __future__ import annotations

import io
from typing import Any

from shepherd.ui.terminal.comparison_table import compared


def interval(value: float | None, low: float | None, high: float | None) -> dict[str, float | None]:
    return {"value": value, "low": low, "high": high}


def arm(name: str, kind: str, right: float, **more: Any) -> dict[str, Any]:
    share = interval(right, right - 0.05, right + 0.05)
    return {
        "name": name,
        "kind": kind,
        "categories": {"open_qa": 5, "poem": 4} if kind == "local" else {},
        "measures": {"right": share, "loss": interval(1.25, 1.0, 1.5), "f1": share, **more},
        "category": {"right": {"open_qa": share, "poem": interval(0.0, 0.0, 0.071)}},
    }


def comparison(*arms: dict[str, Any]) -> dict[str, Any]:
    return {
        "seeds": [0, 1, 2],
        "questions": 1234,
        "loss_examples": 99,
        "arms": list(arms),
        "differences": [
            {
                "arm": "base",
                "measure": "right",
                "relative": interval(200.0, 88.3, None),
                "p_holm": 0.0004,
                "says": "S1.",
            },
            {
                "arm": "local-a",
                "measure": "right",
                "relative": interval(3.5, 3.0, 4.0),
                "p_holm": 0.04,
                "says": "S2.",
            },
            {
                "arm": "base",
                "measure": "loss",
                "relative": interval(0.5, 0.4, 0.6),
                "p_holm": 0.01,
                "says": "unsaid",
            },
        ],
        "says": ["Every tuned arm took 12 steps."],
    }


def printed(found: dict[str, Any]) -> str:
    stream = io.StringIO()
    compared(found, stream)
    return stream.getvalue()


def test_every_number_of_the_chief_table_is_shown() -> None:
    text = printed(
        comparison(
            arm("base", "base", 0.1), arm("local-a", "local", 0.2), arm("federated", "federated", 0.678)
        )
    )
    for shown in (
        "1,234 held-out questions, 3 seeds",
        "67.8",
        "62.8-72.8",
        "1.250",
        "1.000-1.500",
        "open_qa, poem",
    ):
        assert shown in text
    for shown in ("> 88", "<0.001", "3.500", "3.000-4.000", "0.040"):
        assert shown in text
    assert "F1" not in text  # a check knows better
    assert max(map(len, text.splitlines())) <= 80


def test_sentences_are_those_of_the_chief_measure() -> None:
    text = printed(comparison(arm("base", "base", 0.1), arm("federated", "federated", 0.6)))
    assert "- Every tuned arm took 12 steps." in text
    assert "- S1." in text
    assert "unsaid" not in text


def test_categories_are_left_to_the_report_where_arms_are_many() -> None:
    few = comparison(arm("base", "base", 0.1), arm("federated", "federated", 0.6))
    many = comparison(
        *(arm(f"local-{i}", "local", 0.1) for i in range(9)), arm("federated", "federated", 0.6)
    )
    assert "by category" in printed(few)
    assert "by category" not in printed(many)


def test_without_held_out_examples_it_says_so() -> None:
    bare = {**arm("base", "base", 0.1), "measures": {}}
    assert "set data.holdout" in printed(comparison(bare))
