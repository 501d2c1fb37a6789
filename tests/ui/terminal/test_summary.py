"""The end of a run in a terminal of 80 columns: the figures are those of the log."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from shepherd.ui.terminal.summary import loss_by_category, print_summary
from tests.ui.terminal.golden import require_golden

ROWS: list[dict[str, Any]] = [
    {"round": 0, "heldout": {"loss": 3.0, "category": {"qa": 3.5, "information_extraction": 2.5}}},
    {"round": 1, "seconds": {"round": 60.0}, "coverage": {"a": 0.25, "b": 0.75}},
    {
        "round": 2,
        "seconds": {"round": 61.0},
        "coverage": {"a": 0.5, "b": 1.0},
        "heldout": {"loss": 2.0, "category": {"qa": 2.25, "information_extraction": 1.75}},
    },
]


def printed(rows: list[dict[str, Any]], **finished: Any) -> str:
    stream = io.StringIO()
    folder = Path("runs/my run")
    print_summary(folder, rows, {"adapter": folder / "adapter", "answers": {}, **finished}, stream)
    return stream.getvalue()


def test_loss_by_category_is_of_the_base_and_of_the_last_scored_round() -> None:
    assert loss_by_category(ROWS) == {
        "qa": (3.5, 2.25),
        "information_extraction": (2.5, 1.75),
        "all": (3.0, 2.0),
    }
    assert loss_by_category(ROWS[1:])["all"] == (None, 2.0)
    assert loss_by_category(ROWS[1:2]) == {}


def test_scores_and_what_to_try_next() -> None:
    text = printed(ROWS, answers={"qa": (0.0, 0.625)}, remarks=["2 answers of 8 were cut."])
    assert max(map(len, text.splitlines())) <= 80
    assert "\x1b" not in text
    require_golden("summary", text)


def test_a_run_that_was_scored_at_its_end_alone() -> None:
    require_golden("summary_last_round", printed(ROWS[1:]))


def test_a_run_without_scores_has_no_table() -> None:
    require_golden("summary_unscored", printed([{"round": 1, "seconds": {"round": 1.0}}]))
