"""Terminals of 80 columns without colour, whatever the tests are started from."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def _eighty_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    for name in ("FORCE_COLOR", "NO_COLOR", "LINES", "TTY_COMPATIBLE"):
        monkeypatch.delenv(name, raising=False)
