"""The run folder: taken by one process at a time, and whole after `kill -9` at any moment.

runs/NAME/
  run.toml        the run file as it was given; a folder is a run once it is there
  plan.json       what was chosen for this machine; see `machine.plan`
  versions.json   what the run was started with
  rounds.jsonl    one line a finished round; round 0 is the untuned base
  finished.json   the last round and what came of the run, once its adapter is written
  checkpoints/    the last server states
  adapter/        the final adapter in PEFT's layout, with its model card
"""

from __future__ import annotations

import errno
import json
import logging
import os
import platform
import secrets
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from shepherd import private
from shepherd.errors import FolderError, SettingsError
from shepherd.settings import RunSettings, dump, read_kept
from shepherd.version import version

RUN_FILE, VERSIONS, LOG, LOCK = "run.toml", "versions.json", "rounds.jsonl", ".lock"
FINISHED = "finished.json"
PLAN = "plan.json"
"""What was chosen for the run on this machine; folders of earlier versions have it in the run file."""
SILOS = "silos.json"
"""Where a run over silos keeps which server it goes on at."""
_PACKAGES = ("torch", "transformers", "peft", "datasets", "numpy", "safetensors")
_TEMPORARY = ".tmp"
SECRET_BYTES = 32
log = logging.getLogger(__name__)

Row = dict[str, Any]
_held: set[tuple[int, int]] = set()
"""The lock files that this process holds, by device and inode."""
_looked_at: set[tuple[int, ...]] = set()
"""The run folders that this process has read and found no link in, by what `_mark` tells them apart."""


@dataclass(frozen=True, slots=True)
class RunFolder:
    """A run folder that this process holds until `close()` or its death; from `create` or `reopen`."""

    path: Path
    lock: int

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def adapter(self) -> Path:
        return self.path / "adapter"

    @property
    def clients(self) -> Path:
        """What clients remember between their visits."""
        return self.path / "clients"

    def require_held(self) -> None:
        """Raise FolderError if the folder was removed, or is another run's by now."""
        try:
            held = os.path.samestat(os.stat(self.path / LOCK), os.fstat(self.lock))
        except OSError:
            held = False
        if not held:
            raise FolderError(
                f"{self.path} was removed or replaced while its run went on; put it back and resume, "
                "or start again in a new folder"
            )

    def write(self, name: str, text: str) -> Path:
        """Write a file of the folder atomically; see `write_atomic`."""
        return write_atomic(self.path / name, text)

    def append(self, row: Mapping[str, Any]) -> None:
        """Add one finished round to the log; see `append`."""
        append(self.path, row)

    def reconcile(self, upto_round: int, row: Mapping[str, Any] | None = None) -> list[Row]:
        """Make the log agree with the checkpoint of round `upto_round`; see `reconciled`."""
        return reconciled(self.path, upto_round, row)

    def close(self) -> None:
        """Give the folder back. The lock also goes with the process, however it ends."""
        _held.discard(_identity(self.lock))
        os.close(self.lock)


def append(path: Path, row: Mapping[str, Any]) -> None:
    """Add one finished round to the log in a folder, and see it on the disk before returning.

    Raises:
        FolderError: the disk is full or the folder has gone; the log then holds no part of the row.
    """
    with mending(path), open(path / LOG, "ab", buffering=0, opener=private.owner_only) as log:
        before = os.fstat(log.fileno()).st_size
        try:
            _write_all(log.fileno(), _line(row))
        except BaseException:  # of an interrupt, too
            os.ftruncate(log.fileno(), before)
            raise
        os.fsync(log.fileno())


def reconciled(path: Path, upto_round: int, row: Mapping[str, Any] | None = None) -> list[Row]:
    """Make the log in a folder agree with the checkpoint of round `upto_round`, and return its rows.

    A torn last line and the rows after the checkpoint are cut, since those rounds are run again;
    `row`, which the checkpoint carries, is added where the log lacks it. So each finished round is
    there exactly once, whichever of the two was written last before the process died.

    Raises:
        FolderError: a line inside the log is unreadable, or the disk is full.
    """
    with mending(path):
        old = (path / LOG).read_bytes() if (path / LOG).exists() else b""
        kept = {r["round"]: r for r in reversed(_parsed(old, path / LOG)) if r["round"] <= upto_round}
        if row is not None and row["round"] not in kept:
            kept[row["round"]] = json.loads(_line(row))
        rows = [kept[number] for number in sorted(kept)]
        new = b"".join(_line(r) for r in rows)
        if new != old:
            write_atomic(path / LOG, new)
        return rows


def create(
    path: str | Path, settings: RunSettings, plan: str | None = None, silos: str | None = None
) -> RunFolder:
    """Take a new or empty folder for a run, and write the run file and the versions into it.

    It is its owner's alone (mode 0700), and so is what a run writes into it: there is text of the data in it.

    Args:
        plan: what `plan.json` says. It is there before the folder is a run, so that none chooses twice.
        silos: what `silos.json` says, of a run over silos. It is there before the folder is a run, so that
            none is ever taken for a run of one process.

    Raises:
        FolderError: the folder holds another run or any other file, or cannot be written.
    """
    path = Path(path)
    with mending(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        private.make(path)
        _require_empty(path)  # before the lock file, so that nothing is left in a folder that is not ours
        with suppress(PermissionError):  # an empty one may have been there, on a disk that knows no modes
            private.close(path)
        _warn_of_others(path)
        folder = RunFolder(path, _lock(path))
        try:
            _require_empty(path)  # another process may have come between
            _sweep(path)
            folder.write(VERSIONS, json.dumps(versions(), indent=2) + "\n")
            if plan is not None:
                folder.write(PLAN, plan)
            if silos is not None:
                folder.write(SILOS, silos)
            folder.write(RUN_FILE, dump(settings))
        except BaseException:
            folder.close()
            raise
        return folder


def reopen(path: str | Path) -> RunFolder:
    """Take the folder of a run that was started before.

    Raises:
        FolderError: there is no run in it, or another process holds it.
    """
    path = Path(path)
    _look_for_links(path)
    read_settings(path)
    with mending(path):
        folder = RunFolder(path, _lock(path))
        _sweep(path)
        _warn_of_others(path)
    return folder


def is_run(path: str | Path) -> bool:
    """Whether a run was ever started in the folder."""
    return (Path(path) / RUN_FILE).is_file()


def is_finished(path: str | Path) -> bool:
    """Whether a run's last round is done and its adapter written.

    Raises:
        FolderError: there is no run in it, or its run file is damaged.
    """
    try:
        done = json.loads((Path(path) / FINISHED).read_text(encoding="utf8"))["round"]
    except (OSError, ValueError, TypeError, KeyError):
        return False
    return bool(done == read_settings(path).federation.rounds)


def is_over_silos(path: str | Path) -> bool:
    """Whether the run in a folder goes on at a server of silos."""
    return (Path(path) / SILOS).is_file()


def read_settings(path: str | Path) -> RunSettings:
    """The run file of a run folder. Takes no lock: a run may be read while it goes on.

    Links are looked for when this process first reads the folder, and whenever one takes it.

    Raises:
        FolderError: there is no run in it, its run file is damaged, or a link lies in it.
    """
    path = Path(path)
    if _mark(path) not in _looked_at:
        _look_for_links(path)
    if not is_run(path):
        raise FolderError(f"{path} holds no run ({RUN_FILE} is missing); name the folder of a run")
    try:
        return read_kept(path / RUN_FILE)
    except SettingsError as error:
        raise FolderError(f"the run in {path} cannot be read: {error}") from error


def _look_for_links(path: Path) -> None:
    mark = _mark(path)
    require_no_links(path)
    if mark is not None:
        _looked_at.add(mark)


def _mark(path: Path) -> tuple[int, ...] | None:
    """What tells a run folder from any other, also from one put in its place; None where there is none."""
    try:
        run, file = os.stat(path), os.lstat(path / RUN_FILE)
    except OSError:
        return None
    return run.st_dev, run.st_ino, file.st_ino, file.st_ctime_ns


def require_no_links(path: str | Path) -> None:
    """Raise FolderError where a symbolic link lies in a run folder; the folder itself may be one.

    A folder may come from anywhere, and what is written into it would land where its links point.
    """
    for place, folders, names in os.walk(path):
        links = (Path(place) / name for name in (*folders, *names) if os.path.islink(f"{place}/{name}"))
        if (link := next(links, None)) is not None:
            raise FolderError(
                f"{link} is a symbolic link, which no run folder may hold; remove it, or put what it points"
                " to in its place"
            )
        if Path(place) == Path(path):  # wandb links its newest run, and nothing else writes in there
            folders[:] = [name for name in folders if name != "wandb"]


def read_rows(path: str | Path) -> list[Row]:
    """The rows of a run's log, without a last line that is still being written.

    Raises:
        FolderError: a line inside the log is unreadable.
    """
    log = Path(path) / LOG
    with mending(Path(path)):
        return _parsed(log.read_bytes(), log) if log.exists() else []


def changed_versions(path: str | Path) -> dict[str, tuple[str, str]]:
    """What differs from when the run was started, as name -> (then, now); equal bits need none of it."""
    try:
        then = json.loads((Path(path) / VERSIONS).read_text(encoding="utf8"))
    except (OSError, ValueError):
        return {}  # the record is for the reader; a run goes on without it
    now = versions()
    names = sorted(then.keys() | now.keys())
    return {n: (then.get(n, "none"), now.get(n, "none")) for n in names if then.get(n) != now.get(n)}


def versions() -> dict[str, str]:
    """Python, platform, the libraries that decide the bits, and the source commit where known."""
    found = {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "shepherd-fit": version(),
    }
    for package in _PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    commit = _commit(Path(__file__).parent)
    return {**found, "commit": commit} if commit else found


def write_atomic(path: Path, content: str | bytes) -> Path:
    """Write a file so that a reader, or a crash, sees the old one or the new one and never a part.

    Raises:
        FolderError: the disk is full, or the folder cannot be written; the old file is still there.
    """
    data = content.encode("utf8") if isinstance(content, str) else content
    with mending(path.parent):
        # a name of its own for each writer, of whom there may be two; for its owner alone
        handle, name = tempfile.mkstemp(_TEMPORARY, f".{path.name}-", path.parent)
        temporary = Path(name)
        try:
            with open(handle, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except OSError:
            temporary.unlink(missing_ok=True)
            raise
        private.sync(path.parent)
    return path


def secret(path: Path) -> int:
    """The secret number in a file, of 256 bits; drawn from the operating system where there is no file yet.

    Raises:
        FolderError: the file cannot be read or written, or was cut or changed.
    """
    with mending(path.parent):
        if not path.exists():
            write_atomic(path, secrets.token_hex(SECRET_BYTES))
        text = path.read_text(encoding="ascii", errors="replace")
    try:
        if len(text) != 2 * SECRET_BYTES:
            raise ValueError
        return int(text, 16)
    except ValueError:
        raise FolderError(f"{path} was cut or changed; delete it, and a new one is drawn") from None


@contextmanager
def mending(path: Path) -> Iterator[None]:
    """Turn what the file system refuses into one FolderError sentence about the folder `path`."""
    try:
        yield
    except OSError as error:
        raise FolderError(disk_fault(path, error)) from error


def disk_fault(path: Path, error: OSError) -> str:
    """One sentence on why the file system refused, and the mend."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"the disk of {path} is full; free some space, then `shepherd resume {path}`"
    name = error.filename or path
    return f"{name} cannot be used ({error.strerror}); check the path and its permissions"


def require_free(path: str | Path) -> None:
    """Raise FolderError unless a run may begin there: the folder is new or empty, and can be written."""
    path = Path(path)
    with mending(path):
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
                with suppress(OSError):  # it was not made, or somebody else writes there by now
                    each.rmdir()


def _require_empty(path: Path) -> None:
    if is_run(path):
        raise FolderError(
            f"{path} holds another run; go on with it by `shepherd resume {path}`, "
            "or set output to a new folder"
        )
    # a run that died before its run file was there has left no more than these
    ours = {LOCK, VERSIONS, PLAN, SILOS, *(each.name for each in _leftovers(path))}
    other = sorted(entry.name for entry in path.iterdir() if entry.name not in ours)
    if other:
        raise FolderError(f"{path} is not empty (it holds {other[0]}); set output to a new folder")


def _leftovers(path: Path) -> list[Path]:
    """What killed writers of the folder's own files have left, of this version or an earlier one."""
    names = (VERSIONS, PLAN, SILOS, RUN_FILE, LOG, FINISHED)
    earlier = {name + _TEMPORARY for name in names}
    starts = tuple(f".{name}-" for name in names)
    return [
        entry
        for entry in path.iterdir()
        if entry.name in earlier or (entry.name.startswith(starts) and entry.name.endswith(_TEMPORARY))
    ]


def _warn_of_others(path: Path) -> None:
    if private.open_to_others(path):
        log.warning(
            "others on this machine can read %s, and texts of the data with it; take that from them with:"
            " chmod -R go= %s",
            path, shlex.quote(str(path)),
        )  # fmt: skip


def _sweep(path: Path) -> None:
    for entry in _leftovers(path):
        entry.unlink(missing_ok=True)


def _lock(path: Path) -> int:
    handle = os.open(path / LOCK, os.O_RDWR | os.O_CREAT | private.NO_LINK, private.FILE)
    if sys.platform != "win32":  # no flock there; the run file alone guards the folder
        import fcntl

        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            ours = _identity(handle) in _held
            os.close(handle)
            if ours:
                raise FolderError(
                    f"this process holds the run in {path} already; call close() on that run first, or open"
                    " runs by `with`"
                ) from None
            raise FolderError(f"another process is running in {path}; wait for it or stop it") from None
    _held.add(_identity(handle))
    return handle


def _identity(handle: int) -> tuple[int, int]:
    found = os.fstat(handle)
    return found.st_dev, found.st_ino


def _line(row: Mapping[str, Any]) -> bytes:
    return (json.dumps(_plain(row), allow_nan=False) + "\n").encode()


def _plain(value: Any) -> Any:
    """The same in JSON's types: numpy scalars as numbers, and null for a number that is not finite."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    value = value.item() if hasattr(value, "item") else value
    return None if isinstance(value, float) and not abs(value) < float("inf") else value


def _parsed(content: bytes, log: Path) -> list[Row]:
    *lines, _torn = content.split(b"\n")  # what follows the last newline was never finished
    return [_parsed_line(line, number, log) for number, line in enumerate(lines, 1)]


def _parsed_line(line: bytes, number: int, log: Path) -> Row:
    try:
        row = json.loads(line)
        int(row["round"])
    except (ValueError, TypeError, KeyError) as error:
        raise FolderError(f"line {number} of {log} is not a round; delete that line and go on") from error
    return dict(row)


def _write_all(handle: int, data: bytes) -> None:
    while data:
        data = data[os.write(handle, data) :]


def _commit(package: Path) -> str:
    """The commit of the checkout that `package` lies in, with + where files were changed; else ""."""
    try:
        top = Path(_git(package, "rev-parse", "--show-toplevel"))
        if top / "src" / package.name != package:
            return ""  # installed inside somebody else's repository
        dirty = "+" if _git(package, "status", "--porcelain", "--", str(package)) else ""
        return _git(package, "rev-parse", "HEAD") + dirty
    except (OSError, subprocess.SubprocessError):
        return ""


def _git(where: Path, *words: str) -> str:
    done = subprocess.run(
        ["git", "-C", str(where), *words], capture_output=True, text=True, timeout=5, check=True
    )
    return done.stdout.strip()
