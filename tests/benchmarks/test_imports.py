"""Every benchmark and tool can at least be imported; those that take long run by their own command alone."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FILES = (path for name in ("benchmarks", "tools") for path in (ROOT / name).glob("*.py"))
MODULES = [f"{path.parent.name}.{path.stem}" for path in FILES]


@pytest.mark.parametrize("name", sorted(each for each in MODULES if not each.endswith("__init__")))
def test_it_is_imported(name: str) -> None:
    if name.startswith("benchmarks.silos"):
        pytest.importorskip("nvflare")
    assert importlib.import_module(name).__doc__
