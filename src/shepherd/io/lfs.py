"""Pointers of Git LFS: what a clone without `git lfs pull` has in the place of its large files."""

from __future__ import annotations

import re
from pathlib import Path

LONGEST_BYTES = 1024
_POINTER = re.compile(rb"version https?://(git-lfs|hawser)\.github\.com/spec/v\d+\r?\n")
_SIZE = re.compile(rb"^size (\d+)\r?$", re.MULTILINE)


def fault(path: Path) -> str:
    """What to do about a pointer, as a sentence; "" where the file is none, or cannot be read.

    >>> fault(Path("there is no such file"))
    ''
    """
    try:
        with path.open("rb") as file:
            head = file.read(LONGEST_BYTES)
    except OSError:
        return ""
    if not _POINTER.match(head):
        return ""
    size = _SIZE.search(head)
    bytes_ = f", which has {int(size[1]):,} bytes" if size else ""
    return (
        f"{path} is a pointer of Git LFS and not the file itself{bytes_}; fetch it with `git lfs pull` in"
        f" {path.parent}, or download it again"
    )
