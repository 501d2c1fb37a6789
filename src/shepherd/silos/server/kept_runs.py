"""The runs that a server keeps on its own disk: list them, and delete old ones."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from shepherd.errors import FolderError, SilosError
from shepherd.io import lock
from shepherd.io.atomic import disk_errors
from shepherd.run import folder as folders
from shepherd.run.log import LOG, read_rows
from shepherd.silos.flare.cleanup import unfinished_runs
from shepherd.silos.flare.controller import SUBMITTER
from shepherd.silos.protocol.schema import sentence
from shepherd.silos.server.serve import kit_in

DAY_S = 24 * 3600.0
DELETED_PREFIX = ".deleted-"
"""Name prefix of a folder that is being deleted; the next deletion removes any that a kill left."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptRun:
    """A run in the server's folder."""

    run: str
    """The run's id."""
    folder: Path
    submitter: str
    """Name of the administrator who submitted its first job."""
    round: int
    """Number of finished rounds."""
    bytes: int
    """Size of its files."""
    idle_s: float
    """Seconds since its last finished round."""
    active: bool
    """Whether a job of it runs or is queued."""


def list_runs(folder: str | Path) -> list[KeptRun]:
    """List the runs that a server keeps, the longest idle first.

    Args:
        folder: the server's kit, or the federation folder that contains it.

    Raises:
        SilosError: there is no server kit.
        FolderError: the kit cannot be read.
    """
    kit = kit_in(folder)
    home = kit.home / "runs"
    with disk_errors(home):
        places = [place for place in home.iterdir() if _is_run(place)] if home.is_dir() else []
        going = unfinished_runs(kit.folder)
        runs = [_describe(place, going) for place in places]
    return sorted(runs, key=lambda run: (-run.idle_s, run.run))


def delete(folder: str | Path, runs: Collection[str]) -> int:
    """Delete these runs from the server's disk; the coordinators' run folders are not touched.

    Returns:
        The number of bytes freed.

    Raises:
        SilosError: a run does not exist or is under way; then none is deleted.
        FolderError: the system refuses a deletion; the runs before it are deleted.
    """
    found = {run.run: run for run in list_runs(folder)}
    for name in runs:
        if name not in found:
            raise SilosError(
                f"the server keeps no run {sentence(name)[:80]}; `shepherd silos runs` lists them"
            )
        if found[name].active:
            raise SilosError(f"run {name} is under way; stop it first with `shepherd silos stop`")
    for name in runs:
        _delete(found[name].folder)
    return sum(found[name].bytes for name in runs)


def idle_runs(runs: Sequence[KeptRun], days: float) -> list[str]:
    """Ids of the runs that have been idle for `days` or more and are not under way."""
    return [run.run for run in runs if not run.active and run.idle_s >= days * DAY_S]


def _delete(place: Path) -> None:
    with disk_errors(place.parent):
        for leftover in place.parent.glob(f"{DELETED_PREFIX}*"):
            shutil.rmtree(leftover)
        with _try_lock(place) as free:
            if not free:  # a job has started meanwhile
                raise SilosError(f"run {place.name} is under way; stop it first with `shepherd silos stop`")
            doomed = place.rename(place.with_name(DELETED_PREFIX + place.name))
        shutil.rmtree(doomed)


def _describe(place: Path, going: Collection[str]) -> KeptRun:
    files = [file for file in place.rglob("*") if file.is_file()]
    with _try_lock(place) as free:
        busy = not free
    log = place / LOG
    last = log.stat().st_mtime if log.exists() else place.stat().st_mtime
    return KeptRun(
        run=place.name,
        folder=place,
        submitter=_read_submitter(place),
        round=_last_round(place),
        bytes=sum(file.stat().st_size for file in files),
        idle_s=max(0.0, time.time() - last),
        active=busy or place.name in going,
    )


def _read_submitter(place: Path) -> str:
    try:
        return sentence((place / SUBMITTER).read_text(encoding="utf8"))
    except OSError:
        return ""


def _last_round(place: Path) -> int:
    try:
        rows = read_rows(place)
    except FolderError:  # a run with a damaged log can still be deleted
        return 0
    return int(rows[-1]["round"]) if rows else 0


def _is_run(place: Path) -> bool:
    return place.is_dir() and not place.name.startswith(".")


@contextmanager
def _try_lock(place: Path) -> Iterator[bool]:
    """Yield whether the run was free; then it stays locked until the end of the block."""
    try:
        handle = lock.acquire(place / folders.LOCK)
    except BlockingIOError:
        yield False
        return
    try:
        yield True
    finally:
        os.close(handle)
