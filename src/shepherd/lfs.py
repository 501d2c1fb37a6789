"""Pointers of Git LFS: what a clone without `git lfs pull` has in the place of its large files."""

from __future__ import annotations

import re
from pathlib import Path

LONGEST_BYTES = 1024
_POINTER = re.compile(rb"version https?://(git-lfs|hawser)\.github\.com/spec/v\d+\r?\n")
_SIZE = re.compile(rb"^size (\d+)\r?$", re.MULTILINE)


def pointed_bytes(path: Path) -> int | None:
    """The size of the file that a pointer stands for; None where the file is no pointer.

    Raises:
        OSError: the file cannot be read.
    """
    with path.open("rb") as file:
        head = file.read(LONGEST_BYTES)
    if not _POINTER.match(head):
        return None
    size = _SIZE.search(head)
    return int(size[1]) if size else 0


def first_pointer(folder: Path) -> str:
    """What is wrong with the first pointer among a folder's files, as a whole sentence; "" where none is."""
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        try:
            size = pointed_bytes(path) if path.is_file() else None
        except OSError:  # reading says best what is wrong
            continue
        if size is not None:
            return sentence(path, size)
    return ""


def sentence(path: Path, size: int) -> str:
    """What to do about a pointer."""
    return (
        f"{path} is a pointer of Git LFS and not the file itself, which has {size:,} bytes; fetch it with"
        f" `git lfs pull` in {path.parent}, or download it again"
    )
