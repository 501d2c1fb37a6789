"""What a run has said that it spent is not taken back, wherever it was said."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from shepherd.run import claims

LEVEL, NAME = "example_privacy", "example-privacy.json"


def row(epsilon: float | None, delta: float = 1e-4, **more: Any) -> dict[str, Any]:
    return {"epsilon": epsilon, "delta": delta, **more}


@pytest.mark.parametrize(
    ("kept", "logged", "due"),
    [
        (None, [], {}),
        (row(2.0, finished=3, again=1), [], row(2.0)),
        ({"finished": 3, "again": 1}, [row(1.0), row(3.0), row(2.5)], row(3.0)),
        (row(4.0), [row(1.0)], row(4.0)),
        (row(4.0), [row(None, 1e-3)], row(None, 1e-3)),  # no bound is more than any
    ],
)
def test_it_is_the_most_of_ledger_and_log(tmp_path: Path, kept: Any, logged: list[Any], due: Any) -> None:
    if kept is not None:
        (tmp_path / NAME).write_text(json.dumps({"finished": 0, **kept}))
    rows = [{"round": 0}, *({"round": n, LEVEL: each} for n, each in enumerate(logged, 1))]
    assert claims.largest(tmp_path, rows) == due


def test_readers_get_the_larger_of_ledger_and_log_with_the_round(tmp_path: Path) -> None:
    kept = {"finished": 2, "noise": 1.0, "says": ["what it means"]}
    rows = [{"round": 0}, *({"round": n, LEVEL: row(1.0 * n)} for n in (1, 2, 3))]
    assert claims.spent(tmp_path, []) == {}
    assert claims.spent(tmp_path, rows) == {LEVEL: row(3.0, finished=3)}
    for said, due in ((0.001, row(3.0, finished=3)), (4.0, row(4.0, finished=2))):  # an old copy, lost rounds
        (tmp_path / NAME).write_text(json.dumps({**kept, **row(said)}))
        assert claims.spent(tmp_path, rows) == {LEVEL: {**kept, **due}}
    (tmp_path / NAME).write_text(json.dumps(kept))  # over sites, before any row tells it
    assert claims.spent(tmp_path, rows[:1]) == {}
    assert claims.spent(tmp_path, rows) == {LEVEL: {**kept, **row(3.0, finished=3)}}
    for wrong in ({}, None, "x", {"epsilon": "abc", "delta": 1.0}, row(float("nan")), row(-1.0)):
        assert claims.spent(tmp_path, [{"round": 1, LEVEL: wrong}]) == {}


@pytest.mark.parametrize(
    ("now", "said", "due"),
    [
        (row(2.0, again=1), {}, row(2.0, again=1)),
        (row(2.0), row(1.0, 1e-3), row(2.0)),
        (row(1.0, 1e-5, again=2), row(2.0), row(2.0, again=2)),
        (row(1.0, 1e-3), row(2.0), row(2.0, 1e-3)),
        (row(float("inf")), row(2.0), row(float("inf"))),
        (row(9.0), row(None), row(None)),
    ],
)
def test_less_than_was_said_is_what_was_said(now: Any, said: Any, due: Any) -> None:
    assert claims.at_least(now, said) == due
