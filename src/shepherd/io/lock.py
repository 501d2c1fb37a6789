"""File locks that end with the process that holds them, however it ends.

Windows has no such locks; there every process gets the lock.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

from shepherd.io import private

POLL_S = 0.1


def acquire(path: Path, wait_s: float = 0.0) -> int:
    """Lock a file, creating it if it is missing; closing the returned handle unlocks it.

    Raises:
        BlockingIOError: another process still holds the lock after `wait_s` seconds.
        OSError: the file cannot be opened, or is a link.
    """
    handle = os.open(path, os.O_RDWR | os.O_CREAT | private.NO_LINK, private.FILE)
    ends = time.monotonic() + wait_s
    while True:
        try:
            _flock(handle, exclusive=True)
            return handle
        except BlockingIOError:
            if time.monotonic() >= ends:
                os.close(handle)
                raise
        except BaseException:
            os.close(handle)
            raise
        time.sleep(POLL_S)


def wait_for(handle: int) -> None:
    """Lock an open file, waiting for as long as another process holds it; closing it unlocks it."""
    if sys.platform != "win32":
        import fcntl

        fcntl.flock(handle, fcntl.LOCK_EX)


def is_held(path: Path) -> bool | None:
    """Whether a process holds the lock; None if that is unknown."""
    if sys.platform == "win32":
        return None
    try:
        with open(path, "rb") as file:
            _flock(file.fileno(), exclusive=False)
    except BlockingIOError:
        return True
    except OSError:
        return None
    return False


def _flock(handle: int, *, exclusive: bool) -> None:
    if sys.platform != "win32":
        import fcntl

        fcntl.flock(handle, (fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH) | fcntl.LOCK_NB)
