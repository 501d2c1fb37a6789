"""The benchmarks of secure sums, at their smallest: they end well and their figures hang together."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks import secure_attacks, secure_cost, secure_faults


def _figures(main: Callable[[Sequence[str]], int], tmp_path: Path) -> Any:
    file = tmp_path / "figures.json"
    assert main(["--quick", "--threads", str(torch.get_num_threads()), "--json", str(file)]) == 0
    return json.loads(file.read_text())["figures"]


def test_cost(tmp_path: Path) -> None:
    rows = _figures(secure_cost.main, tmp_path)["rows"]
    assert [(row["sites"], row["leaving"]) for row in rows] == [(3, 0), (4, 0), (4, 1)]
    for row in rows:
        assert row["up"]["masked"] == row["bytes"] + 72
        assert 0 < row["site"]["masked"] < row["site"]["all"]
        assert row["server"].keys() == {"keys", "shares", "masked", "agree", "total", "all"}
    assert rows[0]["down"] < rows[1]["down"] < 4_000


def test_faults(tmp_path: Path) -> None:
    figures = _figures(secure_faults.main, tmp_path)
    assert figures["right"] + figures["failed"] == figures["cases"] == 12
    assert (figures["wrong"], figures["leaks"]) == (0, 0)
    assert any(row["faults"] and row["right"] for row in figures["rows"])
    assert any(row["server_killed"] and row["right"] for row in figures["rows"])


def test_attacks(tmp_path: Path) -> None:
    figures = _figures(secure_attacks.main, tmp_path)
    assert [row["bared"] for row in figures["rows"]] == [[], [], [], ["site-000"]]
    assert all(row["refused_by"] == row["asked"] > 0 for row in figures["rows"][:3])
