"""Planned against measured: hand-worked figures, and what is not known."""

from __future__ import annotations

import pytest

from shepherd.errors import FolderError
from shepherd.run import measured

ROWS = [
    {"round": 0},
    {"round": 1, "bytes_down": 8, "bytes_up": 2, "seconds": {"tuning": 90.0}},
    {"round": 2, "bytes_down": 8, "bytes_up": 4, "seconds": {"tuning": 10.0}},
    {"round": 3, "bytes_down": 8, "bytes_up": 6, "seconds": {"tuning": 12.0}},
]


def planned(folder) -> None:
    text = measured.text(memory_bytes=300, seconds_a_round=22.0, bytes_down=8, bytes_up=4)
    (folder / measured.EXPECTED).write_text(text)


def test_figures_are_medians_without_the_first_rounds_start(tmp_path) -> None:
    planned(tmp_path)
    (tmp_path / measured.MEASURED).write_text(measured.text(memory_bytes=400))
    found = measured.figures(tmp_path, ROWS)
    assert [(figure.planned, figure.measured) for figure in found] == [(300, 400), (22, 11), (8, 8), (4, 4)]
    assert [figure.off for figure in found] == [-0.25, 1.0, 0.0, 0.0]


def test_what_is_not_known_is_off_by_nothing(tmp_path) -> None:
    assert measured.figures(tmp_path, ROWS) == []
    planned(tmp_path)
    found = measured.figures(tmp_path, [{"round": 0}, {"round": 1}])
    assert all(figure.off is None for figure in found)
    (tmp_path / measured.MEASURED).write_text(measured.text(memory_bytes=None))
    assert measured.figures(tmp_path, ROWS)[0].off is None


@pytest.mark.parametrize("text", ["{", "[1]"])
def test_a_damaged_file_is_named(tmp_path, text) -> None:
    (tmp_path / measured.EXPECTED).write_text(text)
    with pytest.raises(FolderError, match=r"expected\.json is damaged"):
        measured.figures(tmp_path, ROWS)
