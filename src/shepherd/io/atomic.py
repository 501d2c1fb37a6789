"""Files that are there whole or not at all, and one sentence for what a disk refuses."""

from __future__ import annotations

import errno
import os
import secrets
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from shepherd.errors import FolderError
from shepherd.io import private

TEMPORARY_SUFFIX = ".tmp"
SECRET_BYTES = 32


def write_atomic(path: Path, content: str | bytes) -> Path:
    """Write a file so that a reader, or a crash, sees the old one or the new one and never a part.

    Raises:
        FolderError: the disk is full, or the folder cannot be written; the old file is still there.
    """
    data = content.encode("utf8") if isinstance(content, str) else content
    with disk_errors(path.parent):
        # a name of its own for each writer, of whom there may be two; for its owner alone
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


def leftovers(folder: Path, names: tuple[str, ...]) -> list[Path]:
    """What killed writers of the files of these names have left in a folder."""
    earlier = {name + TEMPORARY_SUFFIX for name in names}  # as earlier versions called them
    starts = tuple(f".{name}-" for name in names)
    return [
        entry
        for entry in folder.iterdir()
        if entry.name in earlier or (entry.name.startswith(starts) and entry.name.endswith(TEMPORARY_SUFFIX))
    ]


def secret(path: Path) -> int:
    """The secret number in a file, of 256 bits; drawn from the operating system where there is no file yet.

    Raises:
        FolderError: the file cannot be read or written, or was cut or changed.
    """
    with disk_errors(path.parent):
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
def disk_errors(path: Path) -> Iterator[None]:
    """Turn what the file system refuses into one FolderError sentence about the folder `path`."""
    try:
        yield
    except OSError as error:
        raise FolderError(disk_fault(path, error)) from error


def disk_fault(path: Path, error: OSError) -> str:
    """One sentence on why the file system refused, and what to do."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"the disk of {path} is full; free some space, then `shepherd resume {path}`"
    name = error.filename or path
    return f"{name} cannot be used ({error.strerror}); check the path and its permissions"
