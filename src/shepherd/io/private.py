"""Folders and files for their owner alone: a run keeps text of its data, and other users are no part of it.

Folders have the mode 0700 and files 0600. On Windows modes say nothing, and what a folder inherits holds.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

FOLDER, FILE = 0o700, 0o600
NO_LINK = getattr(os, "O_NOFOLLOW", 0)
"""For `os.open`, never to write where a link points; Windows has none of it."""
OTHERS = 0o077


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


def sync(folder: Path) -> None:
    """Make what was renamed or made in a folder last through a power cut."""
    if sys.platform == "win32":  # folders cannot be opened there
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
