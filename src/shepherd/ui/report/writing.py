"""Write a report into its run folder: report.html and report.json."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shepherd.io import private
from shepherd.io.atomic import write_atomic
from shepherd.ui.report import page
from shepherd.ui.report.gather import collect, collect_runs

if TYPE_CHECKING:
    from shepherd.audit.auditing import Audit
    from shepherd.drill.drilling import Drill

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


def write_runs(file: Path, paths: Sequence[Path], compared: Mapping[str, Any]) -> Path:
    """Write the page of several finished runs into a file.

    Args:
        compared: what `shepherd.compare.runs.compare_runs` found of these runs.

    Raises:
        FolderError: the file cannot be written, or a file of a run is damaged.
    """
    private.make(file.parent)
    return write_atomic(file, page.html(collect_runs(paths, compared)))


def write_audit(found: Audit) -> Path:
    """Write audit.json and the page of an audit into its folder.

    Raises:
        FolderError: the disk is full or the folder cannot be written.
    """
    from shepherd.audit import auditing  # torch is not for other pages

    auditing.write(found)
    return write_atomic(found.folder / auditing.HTML, page.audit(found.row()))


def write_drill(found: Drill) -> Path:
    """Write drill.json and the page of a drill into its folder.

    Raises:
        FolderError: the disk is full or the folder cannot be written.
    """
    from shepherd.drill import drilling  # torch is not for other pages

    drilling.write(found)
    return write_atomic(found.folder / drilling.HTML, page.drill(found.row))


def dumped(report: Mapping[str, Any]) -> str:
    """The report as JSON text, with unrounded numbers."""
    return json.dumps(report, ensure_ascii=False, allow_nan=False, indent=1) + "\n"
