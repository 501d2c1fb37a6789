"""Atomic writing of files, and one sentence for errors of the file system."""

from __future__ import annotations

import errno
import os
import secrets
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from shepherd.errors import FolderError
from shepherd.io import lock, private

TEMPORARY_SUFFIX = ".tmp"
SECRET_BYTES = 32


def write_atomic(path: Path, content: str | bytes) -> Path:
    """Write a file so that a reader, also after a crash, sees the old or the new file and never a part.

    Raises:
        FolderError: the disk is full, or the folder cannot be written; the old file is unchanged.
    """
    data = content.encode("utf8") if isinstance(content, str) else content
    with disk_errors(path.parent):
        # each of several writers has its own temporary file, readable for its owner alone
        handle, name = tempfile.mkstemp(TEMPORARY_SUFFIX, f".{path.name}-", path.parent)
        temporary = Path(name)
        try:
            with open(handle, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        private.sync(path.parent)
    return path


def append_line(path: Path, line: str) -> None:
    """Append a line to a file for its owner alone; it is on the disk when this returns.

    Several processes may append to one file. What a crash left of a line is ended first, so that it spoils no
    other line.

    Args:
        line: without a line break.

    Raises:
        FolderError: the disk is full, or the file cannot be written; it then holds no part of the line.
    """
    with disk_errors(path.parent), open(path, "ab+", buffering=0, opener=private.owner_only) as file:
        lock.wait_for(file.fileno())
        before = file.seek(0, os.SEEK_END)
        file.seek(max(before - 1, 0))
        whole = file.read(1) in (b"", b"\n")
        data = b"\n" * (not whole) + line.encode("utf8") + b"\n"
        try:
            while data:
                data = data[os.write(file.fileno(), data) :]
        except BaseException:  # also on an interrupt
            os.ftruncate(file.fileno(), before)
            raise
        os.fsync(file.fileno())


def require_place(path: Path) -> None:
    """Create the folder of a file that is written after long work, and check now that it can be.

    Raises:
        FolderError: the file cannot be written there.
    """
    with os_errors(f"{path} cannot be written", "check the path and its permissions"):
        private.make(path.parent)
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        handle, name = tempfile.mkstemp(TEMPORARY_SUFFIX, f".{path.name}-", path.parent)
        os.close(handle)
        os.unlink(name)


def leftovers(folder: Path, names: tuple[str, ...]) -> list[Path]:
    """List temporary files that killed writers of these file names have left in a folder."""
    earlier = {name + TEMPORARY_SUFFIX for name in names}  # names in earlier versions
    starts = tuple(f".{name}-" for name in names)
    return [
        entry
        for entry in folder.iterdir()
        if entry.name in earlier or (entry.name.startswith(starts) and entry.name.endswith(TEMPORARY_SUFFIX))
    ]


def secret(path: Path) -> int:
    """Read the secret 256-bit number in a file; without a file, draw it from the operating system.

    Raises:
        FolderError: the file cannot be read or written, or was cut or changed.
    """
    with disk_errors(path.parent):
        if not path.exists():
            renew_secret(path)
        text = path.read_text(encoding="ascii", errors="replace")
    try:
        if len(text) != 2 * SECRET_BYTES:
            raise ValueError
        return int(text, 16)
    except ValueError:
        raise FolderError(f"{path} was cut or changed; delete it, and a new secret is drawn") from None


def renew_secret(path: Path) -> None:
    """Put a new 256-bit number from the operating system in the place of the secret in a file."""
    write_atomic(path, secrets.token_hex(SECRET_BYTES))


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn errors of the file system into one FolderError about the folder `path`."""
    try:
        yield
    except OSError as error:
        raise FolderError(disk_fault(path, error)) from error


@contextmanager
def os_errors(what: str, fix: str) -> Iterator[None]:
    """Turn what the file system refuses into FolderError "WHAT (reason); FIX"."""
    try:
        yield
    except OSError as error:
        raise FolderError(f"{what} ({error.strerror or error}); {fix}") from error


def disk_fault(path: Path, error: OSError) -> str:
    """Say in one sentence why the file system refused, and what to do."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"the disk of {path} is full; free some space, then `shepherd resume {path}`"
    name = error.filename or path
    return f"{name} cannot be used ({error.strerror}); check the path and its permissions"
