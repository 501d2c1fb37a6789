"""The end of a run: the figures are the log's, and nothing is wider than 80 columns."""

import io
from pathlib import Path

from shepherd.ui.terminal.summary import loss_by_category, summary

ROWS = [
    {"round": 0, "heldout": {"loss": 3.0, "category": {"qa": 3.5, "information_extraction": 2.5}}},
    {"round": 1, "seconds": {"round": 60.0}, "coverage": {"a": 0.25, "b": 0.75}},
    {
        "round": 2,
        "seconds": {"round": 61.0},
        "coverage": {"a": 0.5, "b": 1.0},
        "heldout": {"loss": 2.0, "category": {"qa": 2.25, "information_extraction": 1.75}},
    },
]


def printed(rows: list[dict[str, object]], answers: dict[str, tuple[float, float]]) -> str:
    stream = io.StringIO()
    summary(Path("runs/my run"), rows, {"answers": answers, "adapter": "runs/my run/adapter"}, stream)
    return stream.getvalue()


def test_loss_by_category_is_of_the_base_and_of_the_last_scored_round() -> None:
    assert loss_by_category(ROWS) == {
        "qa": (3.5, 2.25),
        "information_extraction": (2.5, 1.75),
        "all": (3.0, 2.0),
    }
    assert loss_by_category(ROWS[1:])["all"] == (None, 2.0)
    assert loss_by_category(ROWS[1:2]) == {}


def test_the_table_and_what_to_try_next() -> None:
    text = printed(ROWS, {"qa": (0.0, 0.625)})
    lines = [" ".join(line.split()) for line in text.splitlines()]
    assert "qa 0.0% 62.5% 3.5000 2.2500" in lines
    assert "information_extraction 2.5000 1.7500" in lines
    assert "all 3.0000 2.0000" in lines
    assert "2 rounds in 2 min 01 s, 75% of each client's data seen on average." in lines
    assert "Adapter: runs/my run/adapter" in lines
    assert any(line.startswith("shepherd generate 'runs/my run' ") for line in lines)
    assert max(map(len, text.splitlines())) <= 80
    assert "\x1b" not in text


def test_a_run_without_scores_has_no_table() -> None:
    text = printed([{"round": 1, "seconds": {"round": 1.0}}], {})
    assert "category" not in text
    assert "1 round in 1 s." in text
