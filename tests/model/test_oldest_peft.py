"""The exported adapter in the oldest PEFT that pyproject.toml allows, where it is at hand."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from importlib.metadata import distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
OLDEST = Path(os.environ.get("SHEPHERD_OLDEST_PEFT", ROOT / ".oldest-peft"))
CASES = ("tests/model/test_export.py", "tests/model/test_files.py", "tests/model/test_against_peft.py")


@pytest.mark.slow
def test_adapters_are_right_in_the_oldest_peft_too() -> None:
    needs = re.search(r'"peft>=([\d.]+)"', (ROOT / "pyproject.toml").read_text())
    assert needs
    found = [each.version for each in distributions(name="peft", path=[str(OLDEST)])]
    if not found:
        pytest.skip(f"no PEFT in {OLDEST}; run `make oldest-peft`, or set SHEPHERD_OLDEST_PEFT")
    assert f"{found[0]}.".startswith(f"{needs[1]}.")
    path = os.pathsep.join([str(OLDEST), os.environ.get("PYTHONPATH", "")])
    told = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "slow or not slow", *CASES],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert told.returncode == 0, told.stdout[-4000:] + told.stderr[-2000:]
