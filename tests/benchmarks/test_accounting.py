"""Every fixture of the accountant is within 1 % of what is published, and the command prints it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from benchmarks.accounting import FIXTURES, Fixture

from benchmarks import accounting

SLOW = [each for each in FIXTURES if each.name.startswith("mixtures")]


@pytest.mark.parametrize(
    "fixture",
    [pytest.param(each, marks=pytest.mark.slow if each in SLOW else (), id=each.name) for each in FIXTURES],
)
def test_the_published_value_is_reproduced(fixture: Fixture) -> None:
    assert fixture.ours() == pytest.approx(fixture.published, rel=0.01)


def test_all_cells_of_the_table_of_silos_are_there() -> None:
    assert sum(each.of == "noise" for each in FIXTURES) == 12 + 1
    assert len({each.name for each in FIXTURES}) == len(FIXTURES)
    assert len(SLOW) == 1


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "figures.json"
    assert accounting.main(["--quick", "--threads", str(torch.get_num_threads()), "--json", str(file)]) == 0
    figures = json.loads(file.read_text())["figures"]
    assert [row["published"] for row in figures["rows"]] == [1.0, 1.0, 4.377178]
    assert all(row["difference"] == row["ours"] / row["published"] - 1 for row in figures["rows"])
    assert "largest difference" in capsys.readouterr().out


def test_a_value_that_is_off_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    off = Fixture(name="off", of="epsilon", published=1.0, ours=lambda: 1.02)
    monkeypatch.setattr(accounting, "FIXTURES", (off,))
    assert accounting.main(["--quick", "--threads", str(torch.get_num_threads())]) == 1
