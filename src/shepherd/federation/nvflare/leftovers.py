"""What dead jobs left in a kit, put in order before FLARE starts, when none can be running.

FLARE leaves the record of a job whose server was killed at RUNNING for ever, the folder of every job it
ever ran, and a line in its audit log for every question of an administrator.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import uuid
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from shepherd.errors import FolderError
from shepherd.folder import write_atomic

JOBS, AUDIT = "jobs", "audit.log"
KEPT = 10
"""Job folders and finished records that stay, the newest, for whoever looks for a fault."""
MOST_AUDIT = 20 << 20
"""Bytes of FLARE's audit log before it is set aside, over the one that was."""
ABANDONED = "FINISHED:ABANDONED"
_UNFINISHED = frozenset({"RUNNING", "DISPATCHED"})
_WAITING = frozenset({"SUBMITTED", "APPROVED"})


def tidy(kit: Path) -> None:
    """End the records of jobs that were cut off, and remove all but the newest of what is over.

    What cannot be put in order, as on a full disk, stays as it is.
    """
    with contextlib.suppress(FolderError, OSError):
        _tidy_jobs(kit)
        if (kit / AUDIT).exists() and (kit / AUDIT).stat().st_size > MOST_AUDIT:
            (kit / AUDIT).replace(kit / f"{AUDIT}.1")


def _tidy_jobs(kit: Path) -> None:
    records = list(_of_jobs(kit / JOBS))
    for record in records:
        if _status(record) in _UNFINISHED:
            _abandon(record)
    _remove_old(record for record in records if _status(record) not in _WAITING)
    _remove_old(_of_jobs(kit))


def _of_jobs(folder: Path) -> Iterable[Path]:
    if not folder.is_dir():
        return []
    return [entry for entry in folder.iterdir() if entry.is_dir() and _is_job(entry.name)]


def _is_job(name: str) -> bool:
    try:
        return str(uuid.UUID(name)) == name
    except ValueError:
        return False


def _meta(record: Path) -> dict[str, Any]:
    try:
        found = json.loads((record / "meta").read_text(encoding="utf8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _status(record: Path) -> str:
    return str(_meta(record).get("status", ""))


def _abandon(record: Path) -> None:
    write_atomic(record / "meta", json.dumps({**_meta(record), "status": ABANDONED}))


def _remove_old(folders: Iterable[Path]) -> None:
    for folder in sorted(folders, key=_changed)[:-KEPT]:
        shutil.rmtree(folder, ignore_errors=True)


def _changed(folder: Path) -> float:
    with contextlib.suppress(OSError):
        return folder.stat().st_mtime
    return 0.0
