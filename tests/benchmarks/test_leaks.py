"""The attacks benchmark tries each case with former code and with today's, and holds controls against it."""

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks import attacks, leaks


def test_what_is_in_a_text_counts_only_in_runs_that_are_no_chance() -> None:
    texts = [[1, 2, 3, 4, 5, 6], [7, 8, 9]]
    assert attacks.in_texts([9, 2, 3, 4, 5, 8], texts) == 4
    assert attacks.in_texts([1, 2, 3, 9, 4, 5, 6], texts) == 0
    assert attacks.in_texts([7, 8, 9], texts) == 0


def test_a_loss_that_grows_by_a_tokens_own_tells_the_token() -> None:
    table = np.array([1.0, 2.0, 4.0])
    assert attacks.steps_between([(5.0, 2), (9.0, 3), (9.0, 3), (10.1, 4)], table) == [2, 0]


@pytest.mark.slow
def test_quick(tmp_path: Path) -> None:
    file = tmp_path / "figures.json"
    assert leaks.main(["--quick", "--json", str(file)]) == 0
    figures = json.loads(file.read_text())["figures"]
    (row,), (control,) = figures["rows"], figures["controls"]
    assert (row["out_before"], row["out_now"]) in {(3, 0), (None, 0)}
    assert control["out_now"] == 3
