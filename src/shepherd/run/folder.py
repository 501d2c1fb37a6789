"""The run folder: held by one process at a time, and consistent after `kill -9` at any moment.

runs/NAME/
  run.toml        the run file as it was given; a folder is a run once it is there
  plan.json       what was chosen for this machine; see `machine.plan`
  versions.json   what the run was started with
  trained-with.toml  the settings that its rounds were trained with; see `run.changes`
  rounds.jsonl    one line a finished round; round 0 is the untuned base
  privacy.json    what its rounds have spent, where noise hides clients; see `run.ledger`
  secret          the number that decides the cohorts then, until it is finished
  example-privacy.json  what its rounds have spent, where noise hides single examples
  run-id          the run that these two are of
  expected.json   what it was expected to take; see `run.measured`
  measured.json   the memory that it took, once it is finished
  finished.json   the last round and the run's results, once its adapter is written
  checkpoints/    the last server states
  stages.toml     the run file with stages, if it has them; stages/ holds the runs of those before the last
  start/          a copy of the adapter that the run began with, where adapter.start names one
  clients/        what clients remember between visits
  late/           late updates that a later round takes, under [stragglers]
  adapter/        the final adapter in PEFT's layout, with its model card
"""

from __future__ import annotations

import json
import logging
import os
import shlex
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from shepherd.errors import FolderError, SettingsError
from shepherd.io import lock, private
from shepherd.io.atomic import disk_errors, leftovers, write_atomic
from shepherd.io.phrases import listed
from shepherd.machine import plan as plans
from shepherd.machine.plan import PLAN, Plan
from shepherd.overrides import dump, read_kept
from shepherd.run import log
from shepherd.run.log import LOG
from shepherd.run.measured import EXPECTED, MEASURED
from shepherd.run.versions import VERSIONS, versions
from shepherd.settings import RunSettings

RUN_FILE, FINISHED, LOCK = "run.toml", "finished.json", ".lock"
SILOS = "silos.json"
"""File of a run over silos that names its server."""
TRAINED_WITH = "trained-with.toml"
"""File of the settings that a run's rounds were trained with; the run file may be edited, this is not."""
WITHDRAWN = ".withdrawn-adapter"
"""Name of the final adapter's folder while it is deleted."""
STAGES, STAGES_FILE = "stages", "stages.toml"
"""Folder of a run's earlier stages, and file of the run file that names them; see `run.stages`."""
OWN_FILES = (
    VERSIONS,
    PLAN,
    SILOS,
    TRAINED_WITH,
    RUN_FILE,
    LOG,
    FINISHED,
    "privacy.json",
    "example-privacy.json",
    "run-id",
    "secret",
    EXPECTED,
    MEASURED,
)
logger = logging.getLogger(__name__)

Row = dict[str, Any]
_own_locks: set[tuple[int, int]] = set()
"""Lock files that this process holds, by device and inode."""
_searched: set[tuple[int, ...]] = set()
"""Run folders that this process has searched for links and found none in, by `_folder_identity`."""


@dataclass(frozen=True, slots=True)
class RunFolder:
    """A run folder, held by this process until `close()` or its death; see `create` and `reopen`."""

    path: Path
    lock: int

    @property
    def checkpoints(self) -> Path:
        """Folder of the checkpoints."""
        return self.path / "checkpoints"

    @property
    def adapter(self) -> Path:
        """Folder of the final adapter."""
        return self.path / "adapter"

    @property
    def clients(self) -> Path:
        """Folder of what clients remember between visits."""
        return self.path / "clients"

    @property
    def late(self) -> Path:
        """Folder of updates that came too late for their round, and are part of a later one."""
        return self.path / "late"

    def require_held(self) -> None:
        """Raise FolderError if the folder was removed, or replaced by that of another run."""
        try:
            held = os.path.samestat(os.stat(self.path / LOCK), os.fstat(self.lock))
        except OSError:
            held = False
        if not held:
            raise FolderError(
                f"{self.path} was removed or replaced while its run was going; put it back and resume, "
                "or start again in a new folder"
            )

    def write(self, name: str, text: str) -> Path:
        """Write a file of the folder atomically; see `write_atomic`."""
        return write_atomic(self.path / name, text)

    def append(self, row: Mapping[str, Any]) -> None:
        """Add one finished round to the log; see `log.append_row`."""
        log.append_row(self.path, row)

    def reconcile(self, upto_round: int, row: Mapping[str, Any] | None = None) -> list[Row]:
        """Make the log agree with the checkpoint of round `upto_round`; see `log.reconciled`."""
        return log.reconciled(self.path, upto_round, row)

    def withdraw(self) -> None:
        """Remove the final adapter of a run that goes on; its rounds and checkpoints stay.

        Until it is finished again, the run gives the adapter of its last checkpoint.
        """
        doomed = self.path / WITHDRAWN
        with disk_errors(self.path):
            if doomed.is_dir():
                shutil.rmtree(doomed)
            if self.adapter.is_dir():
                self.adapter.rename(doomed)  # a half-deleted folder must not look like an adapter
                shutil.rmtree(doomed)
            (self.path / FINISHED).unlink(missing_ok=True)  # last, so that a kill before it is put right

    @contextmanager
    def closed_on_error(self) -> Iterator[None]:
        """Close the folder if the block raises, since nobody holds it then."""
        try:
            yield
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Release the folder. The lock also ends with the process, however that ends."""
        _own_locks.discard(_lock_identity(self.lock))
        os.close(self.lock)


class HeldRun:
    """What every run that this process holds has: its settings, its plan and its folder.

    `with` closes it at the end.
    """

    __slots__ = ()
    settings: RunSettings
    plan: Plan
    holder: RunFolder

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    @property
    def folder(self) -> Path:
        """Path of the run folder."""
        return self.holder.path

    @property
    def planned(self) -> RunSettings:
        """Settings with everything that they leave open filled in from the plan."""
        return self.plan.over(self.settings)

    @property
    def until(self) -> int:
        """Number of rounds of the whole run."""
        return self.settings.federation.rounds

    def close(self) -> None:
        """Release the run folder; a second call does nothing."""
        raise NotImplementedError


def create(
    path: str | Path, settings: RunSettings, plan: str | None = None, silos: str | None = None
) -> RunFolder:
    """Take a new or empty folder for a run, and write the run file and the versions into it.

    Folder and files are for their owner alone (modes 0700 and 0600), since they hold text of the data.

    Args:
        plan: content of `plan.json`, written before the folder is a run, so that no run chooses twice.
        silos: content of `silos.json` of a run over silos, written before the folder is a run, so that it
            is never taken for a run in one process.

    Raises:
        FolderError: the folder holds another run or any other file, or cannot be written.
    """
    path = Path(path)
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        private.make(path)
        _require_empty(path)  # before the lock file, so that nothing is left in a folder of somebody else
        with suppress(PermissionError):  # an empty folder may have existed, on a disk without modes
            private.close(path)
        _warn_if_open_to_others(path)
        folder = RunFolder(path, _acquire_lock(path))
        try:
            _require_empty(path)  # another process may have been faster
            _delete_leftovers(path)
            folder.write(VERSIONS, json.dumps(versions(), indent=2) + "\n")
            if plan is not None:
                folder.write(PLAN, plan)
            if silos is not None:
                folder.write(SILOS, silos)
            folder.write(TRAINED_WITH, dump(settings))
            folder.write(RUN_FILE, dump(settings))
        except BaseException:
            folder.close()
            raise
        return folder


def reopen(path: str | Path) -> RunFolder:
    """Take the folder of a run that was started earlier.

    Raises:
        FolderError: the folder holds no run, or another process holds it.
    """
    path = Path(path)
    _search_for_links(path)
    read_settings(path)
    with disk_errors(path):
        folder = RunFolder(path, _acquire_lock(path))
        _delete_leftovers(path)
        _warn_if_open_to_others(path)
    return folder


def is_run(path: str | Path) -> bool:
    """Whether a run was ever started in the folder."""
    return (Path(path) / RUN_FILE).is_file()


def run_of(path: Path) -> Path:
    """The run folder that an adapter's folder belongs to, or the path itself.

    >>> str(run_of(Path("runs/none/adapter")))
    'runs/none/adapter'
    """
    return path.parent if path.name == "adapter" and is_run(path.parent) else path


def is_finished(path: str | Path) -> bool:
    """Whether a run's last round is done and its adapter written.

    Raises:
        FolderError: the folder holds no run, or its run file is damaged.
    """
    done = ended(path)
    return done is not None and done == read_settings(path).federation.rounds


def ended(path: str | Path) -> int | None:
    """The round after which a run's adapter was written; None if that was not done."""
    try:
        return int(json.loads((Path(path) / FINISHED).read_text(encoding="utf8"))["round"])
    except (OSError, ValueError, TypeError, KeyError):
        return None


def scores(path: str | Path) -> dict[str, tuple[float, float]]:
    """Category -> shares of right answers before and after a run, as kept at its end; empty before that."""
    try:
        found = json.loads((Path(path) / FINISHED).read_text(encoding="utf8"))["answers"]
        return {str(name): (float(before), float(after)) for name, (before, after) in found.items()}
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return {}


def is_over_silos(path: str | Path) -> bool:
    """Whether the run in a folder is one over silos."""
    return (Path(path) / SILOS).is_file()


def read_settings(path: str | Path) -> RunSettings:
    """Read the run file of a run folder, without a lock, so that a run may be read while it is going.

    Links are searched for when this process first reads the folder, and whenever a process takes it.

    Raises:
        FolderError: the folder holds no run, its run file is damaged, or there is a link in it.
    """
    path = Path(path)
    if _folder_identity(path) not in _searched:
        _search_for_links(path)
    if not is_run(path):
        begun = [str(each.parent) for each in sorted(path.glob(f"{STAGES}/*/{RUN_FILE}"))]
        if begun and (path / STAGES_FILE).is_file():
            raise FolderError(
                f"the last stage of the run in {path} has not begun; name one of those that have,"
                f" {listed(begun)}, or go on with `shepherd resume {shlex.quote(str(path))}`"
            )
        raise FolderError(f"{path} holds no run ({RUN_FILE} is missing); name the folder of a run")
    try:
        return read_kept(path / RUN_FILE)
    except SettingsError as error:
        raise FolderError(f"the run in {path} cannot be read: {error}") from error


def planned(path: str | Path) -> RunSettings:
    """Read the run file of a run folder, with what it leaves open filled in from the run's plan.

    Raises:
        FolderError: there is no run, or its run file or its plan is damaged.
    """
    settings, plan = read_settings(path), plans.read(path)
    return plan.over(settings) if plan else settings


def _search_for_links(path: Path) -> None:
    mark = _folder_identity(path)
    require_no_links(path)
    if mark is not None:
        _searched.add(mark)


def _folder_identity(path: Path) -> tuple[int, ...] | None:
    """Identity of a run folder, different also for one that replaced it; None if there is no run."""
    try:
        run, file = os.stat(path), os.lstat(path / RUN_FILE)
    except OSError:
        return None
    return run.st_dev, run.st_ino, file.st_ino, file.st_ctime_ns


def require_no_links(path: str | Path) -> None:
    """Raise FolderError if there is a symbolic link in a run folder; the folder itself may be one.

    A folder may come from anywhere, and what is written into it would end up where its links point.
    """
    for place, folders, names in os.walk(path):
        links = (Path(place) / name for name in (*folders, *names) if os.path.islink(f"{place}/{name}"))
        if (link := next(links, None)) is not None:
            raise FolderError(
                f"{link} is a symbolic link, which is not allowed in a run folder; remove it, or replace it"
                " by what it points to"
            )
        if Path(place) == Path(path):  # wandb links its newest run, and writes only in its own folder
            folders[:] = [name for name in folders if name != "wandb"]


def require_free(path: str | Path) -> None:
    """Raise FolderError unless a run may begin in the folder: it is new or empty, and can be written."""
    path = Path(path)
    with disk_errors(path):
        if path.exists():
            _require_empty(path)
        missing = [each for each in (path, *path.parents) if not each.exists()]
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            private.make(path)
            with tempfile.TemporaryFile(dir=path):
                pass
        finally:
            for each in missing:
                with suppress(OSError):  # it was not made, or another process already writes into it
                    each.rmdir()


def _require_empty(path: Path) -> None:
    if is_run(path) and _is_held_here(path):
        raise FolderError(
            f"{path} holds a run that this process has open; continue with that one, or call close() on it"
            f" and set output to a new folder, or take it up again by shepherd.resume({str(path)!r})"
        )
    if is_run(path):
        raise FolderError(
            f"{path} holds another run; continue that with `shepherd resume {path}`, "
            "or set output to a new folder"
        )
    # all that a run leaves if it dies before it has written its run file
    ours = {
        LOCK,
        VERSIONS,
        PLAN,
        SILOS,
        TRAINED_WITH,
        STAGES,
        STAGES_FILE,
        *(each.name for each in leftovers(path, OWN_FILES)),
    }
    other = sorted(entry.name for entry in path.iterdir() if entry.name not in ours)
    if other:
        raise FolderError(f"{path} is not empty (it holds {other[0]}); set output to a new folder")


def _warn_if_open_to_others(path: Path) -> None:
    if private.open_to_others(path):
        logger.warning(
            "other users of this machine can read %s, and text of the data in it; close it to them with:"
            " chmod -R go= %s",
            path, shlex.quote(str(path)),
        )  # fmt: skip


def _delete_leftovers(path: Path) -> None:
    for entry in leftovers(path, OWN_FILES):
        entry.unlink(missing_ok=True)


def _acquire_lock(path: Path) -> int:
    try:
        handle = lock.acquire(path / LOCK)
    except BlockingIOError:
        if _is_held_here(path):
            raise FolderError(
                f"this process already holds the run in {path}; call close() on that run first, or open runs"
                " in a `with` block"
            ) from None
        raise FolderError(f"another process is running in {path}; wait for it or stop it") from None
    _own_locks.add(_lock_identity(handle))
    return handle


def _is_held_here(path: Path) -> bool:
    """Whether this process holds the run in a folder."""
    try:
        found = os.stat(path / LOCK)
    except OSError:
        return False
    return (found.st_dev, found.st_ino) in _own_locks


def _lock_identity(handle: int) -> tuple[int, int]:
    found = os.fstat(handle)
    return found.st_dev, found.st_ino
