"""Folders and files for their owner alone: a run keeps text of its data, and other users are no part of it.

Folders have the mode 0700 and files 0600. On Windows modes say nothing, and what a folder inherits holds.
"""

from __future__ import annotations

import os
import secrets
from pathlib import Path

FOLDER, FILE = 0o700, 0o600
NO_LINK = getattr(os, "O_NOFOLLOW", 0)
"""For `os.open`, never to write where a link points; Windows has none of it."""
OTHERS = 0o077
SECRET_BYTES = 32


def make(path: Path) -> None:
    """Make a folder and the missing ones above it; what is there already stays as it is."""
    for each in (*reversed(path.parents), path):
        if not each.exists():
            each.mkdir(mode=FOLDER, exist_ok=True)
    path.mkdir(mode=FOLDER, exist_ok=True)  # or say what is in the way


def owner_only(path: str, flags: int) -> int:
    """As the `opener` of `open`: a new file is its owner's, and a link is refused (OSError)."""
    return os.open(path, flags | NO_LINK, FILE)


def open_to_others(path: Path) -> bool:
    """Whether other users of this machine may do anything with it."""
    return os.name == "posix" and bool(path.stat().st_mode & OTHERS)


def close(path: Path) -> None:
    """Take a folder, and all that is in it, from other users."""
    for each in (path, *path.rglob("*")):
        if not each.is_symlink() and open_to_others(each):
            each.chmod(FOLDER if each.is_dir() else FILE)


def secret(path: Path) -> int:
    """The secret number in a file, of 256 bits; drawn from the operating system where there is no file yet.

    Raises:
        OSError: the file cannot be read or written.
        ValueError: it was cut or changed.
    """
    if not path.exists():
        beside = path.with_name(f"{path.name}.new")
        beside.unlink(missing_ok=True)
        with open(beside, "x", encoding="ascii", opener=owner_only) as file:
            file.write(secrets.token_hex(SECRET_BYTES))
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
        sync(path.parent)
    text = path.read_text(encoding="ascii", errors="replace")
    if len(text) != 2 * SECRET_BYTES:
        raise ValueError("it has another length")
    return int(text, 16)


def sync(folder: Path) -> None:
    """See to it that what was renamed in a folder is so on the disk, whatever happens to the machine."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
