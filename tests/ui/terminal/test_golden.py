"""Each golden file belongs to a test, so that none is kept for output that is gone."""

from __future__ import annotations

from pathlib import Path

from tests.ui.terminal.golden import FOLDER


def test_every_golden_file_is_used() -> None:
    tests = "".join(path.read_text(encoding="utf8") for path in Path(__file__).parent.glob("test_*.py"))
    names = {path.stem for path in FOLDER.iterdir()}
    assert sorted(name for name in names if f'"{name}"' not in tests) == []
