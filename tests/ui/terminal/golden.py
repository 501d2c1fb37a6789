"""Golden files: what the terminal prints for fixed values, kept in golden/ and compared exactly.

After a change of what is printed, write them again and read the difference before you commit it:

    SHEPHERD_UPDATE_GOLDEN=1 python -m pytest tests/ui/terminal
"""

from __future__ import annotations

import os
from pathlib import Path

FOLDER = Path(__file__).parent / "golden"
UPDATE = "SHEPHERD_UPDATE_GOLDEN"


def require_golden(name: str, printed: str) -> None:
    """Require that `printed` is the text of golden/NAME.txt; write the file instead if UPDATE is set."""
    path = FOLDER / f"{name}.txt"
    if os.environ.get(UPDATE):
        path.write_text(printed, encoding="utf8")
    assert path.is_file(), f"{path} is missing; write it with {UPDATE}=1"
    assert printed == path.read_text(encoding="utf8"), f"see {__file__} to update {path.name}"
