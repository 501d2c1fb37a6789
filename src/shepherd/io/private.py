"""Folders and files for their owner alone, since a run stores text of its data.

Folders have mode 0700 and files 0600. On Windows modes have no effect, and inherited permissions apply.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

FOLDER, FILE = 0o700, 0o600
"""Modes of folders and files."""
NO_LINK = getattr(os, "O_NOFOLLOW", 0)
"""Flag for `os.open` that refuses links; 0 on Windows, which does not have it."""
OTHERS = 0o077


def make(path: Path) -> None:
    """Create a folder and its missing parents, for their owner alone; existing folders are unchanged."""
    for each in (*reversed(path.parents), path):
        if not each.exists():
            each.mkdir(mode=FOLDER, exist_ok=True)
    path.mkdir(mode=FOLDER, exist_ok=True)  # raises FileExistsError if the path is a file


def owner_only(path: str, flags: int) -> int:
    """An `opener` for `open`: a new file is for its owner alone, and a link raises OSError."""
    return os.open(path, flags | NO_LINK, FILE)


def open_to_others(path: Path) -> bool:
    """Whether other users of this machine have any permission on a path."""
    return os.name == "posix" and bool(path.stat().st_mode & OTHERS)


def close(path: Path) -> None:
    """Remove other users' permissions from a folder and everything in it."""
    for each in (path, *path.rglob("*")):
        if not each.is_symlink() and open_to_others(each):
            each.chmod(FOLDER if each.is_dir() else FILE)


def sync(folder: Path) -> None:
    """Make renamed and new entries of a folder survive a power cut."""
    if sys.platform == "win32":  # where folders cannot be opened
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
