"""What the command imports before it knows what to do: nothing that takes long."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = ("torch", "transformers", "pandas", "pyarrow", "matplotlib", "datasets", "pydantic", "rich", "numpy")
PROGRAM = f"""
import sys
from shepherd.ui.cli.main import main
try:
    main(sys.argv[1:], prog_name="shepherd")
except SystemExit as ended:
    print("exit", ended.code)
print("imported", *(name for name in {HEAVY!r} if name in sys.modules))
"""


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["--help"], 0),
        (["--version"], 0),
        (["plan", "--help"], 0),
        (["silos", "--help"], 0),
        (["no-such-command"], 2),
        (["run"], 2),
        (["plan", "x.toml", "--memory", "none"], 2),
    ],
)
def test_help_version_and_wrong_arguments_import_nothing_heavy(words, code) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *words], capture_output=True, text=True, timeout=120, check=True
    )
    lines = done.stdout.splitlines()
    assert f"exit {code}" in lines
    assert lines[-1] == "imported", f"{words} imports {lines[-1]}"
