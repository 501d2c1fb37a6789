"""Write a report into its run folder: report.html and report.json."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from shepherd.io.atomic import write_atomic
from shepherd.ui.report import page
from shepherd.ui.report.gather import collect

HTML, JSON = "report.html", "report.json"


def write(folder: str | Path) -> Path:
    """Write report.html and report.json into the run folder, each whole or not at all.

    Returns:
        The path of the page.

    Raises:
        FolderError: there is no run in the folder, a file of it is damaged, or the disk is full.
    """
    report = collect(folder)
    write_atomic(Path(folder) / JSON, dumped(report))
    return write_atomic(Path(folder) / HTML, page.html(report))


def dumped(report: Mapping[str, Any]) -> str:
    """The report as JSON text, with unrounded numbers."""
    return json.dumps(report, ensure_ascii=False, allow_nan=False, indent=1) + "\n"
