"""Clean up what finished jobs left in a kit, before FLARE starts and while it runs.

FLARE leaves the record of a job whose server was killed at RUNNING for ever, the folder of every job that it
ever ran, a line in its audit log for every command of an administrator, and in the folder of temporary files
the whole of a job that it refused or received in part.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import time
import uuid
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

from shepherd.errors import FolderError
from shepherd.io.atomic import write_atomic
from shepherd.silos.flare.job import run_of

JOBS, AUDIT, TEMPORARY = "jobs", "audit.log", "shepherd/tmp"
MAX_KEPT_JOBS = 10
"""Number of job folders, and of finished records, that are kept, the newest, for finding faults."""
MAX_AUDIT_BYTES = 20 << 20
"""Size at which FLARE's audit log is rotated; one older log is kept."""
MAX_TEMPORARY_AGE_S = 3600.0
"""Age in seconds after which a temporary file is no longer in use."""
ABANDONED = "FINISHED:ABANDONED"
_UNFINISHED = frozenset({"RUNNING", "DISPATCHED"})
_WAITING = frozenset({"SUBMITTED", "APPROVED"})


def tidy(kit: Path) -> None:
    """Mark interrupted jobs as ended, then `sweep`; for use before FLARE starts, while no job runs.

    What cannot be cleaned up, as on a full disk, is left.
    """
    with contextlib.suppress(FolderError, OSError):
        for record in _of_jobs(kit / JOBS):
            if _status(record) in _UNFINISHED:
                _abandon(record)
    shutil.rmtree(kit / TEMPORARY, ignore_errors=True)
    with contextlib.suppress(OSError):
        sweep(kit, ())


def sweep(kit: Path, running: Collection[str]) -> None:
    """Remove all but the newest finished jobs and their records; safe while FLARE runs.

    Args:
        running: ids of jobs that have not finished.

    Raises:
        OSError: the system refuses, as on a full disk; the next sweep does the rest.
    """
    for left in _entries(kit / TEMPORARY):  # first, since it frees the most
        if time.time() - left.stat().st_mtime > MAX_TEMPORARY_AGE_S:
            left.unlink() if left.is_file() else shutil.rmtree(left, ignore_errors=True)
    records = _of_jobs(kit / JOBS)
    waiting = {record.name for record in records if _status(record) in _WAITING | _UNFINISHED}
    busy = waiting.union(running)
    _remove_old(record for record in records if record.name not in busy)
    _remove_old(folder for folder in _of_jobs(kit) if folder.name not in busy)
    _rotate(kit / AUDIT)


def temporary(kit: Path) -> Path:
    """The folder for temporary files of a kit's processes, made readable by its owner only."""
    (kit / TEMPORARY).mkdir(mode=0o700, parents=True, exist_ok=True)
    return kit / TEMPORARY


def unfinished_runs(kit: Path) -> set[str]:
    """Ids of the runs that have an unfinished job, by its record."""
    records = [_meta(record) for record in _of_jobs(kit / JOBS)]
    going = [meta for meta in records if meta.get("status") in _WAITING | _UNFINISHED]
    return {run for meta in going if (run := run_of(meta.get("name")))}


def _rotate(log: Path) -> None:
    """Rotate a log that has grown too large by copying and emptying it, since FLARE may have it open."""
    if log.exists() and log.stat().st_size > MAX_AUDIT_BYTES:
        copied = log.with_name(f"{log.name}.new")
        try:
            shutil.copy(log, copied)
            copied.replace(log.with_name(f"{log.name}.1"))
        finally:
            copied.unlink(missing_ok=True)  # a partial copy on a full disk
        os.truncate(log, 0)


def _of_jobs(folder: Path) -> list[Path]:
    return [entry for entry in _entries(folder) if entry.is_dir() and _is_job(entry.name)]


def _entries(folder: Path) -> list[Path]:
    return list(folder.iterdir()) if folder.is_dir() else []


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
    for folder in sorted(folders, key=_changed)[:-MAX_KEPT_JOBS]:
        shutil.rmtree(folder, ignore_errors=True)


def _changed(folder: Path) -> float:
    with contextlib.suppress(OSError):
        return folder.stat().st_mtime
    return 0.0
