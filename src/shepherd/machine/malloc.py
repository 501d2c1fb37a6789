"""Configure glibc's allocator to keep freed memory and use huge pages. Imports no torch."""

from __future__ import annotations

import ctypes
import os
import platform
import sys
from collections.abc import Callable

# glibc reads these when a process starts. Huge pages make tuning 10 to 20% faster. Without caches of small
# free blocks, which would stay between large ones and make the search for each tensor's memory long, it is 5%
# faster.
SETTINGS = "glibc.malloc.hugetlb=1:glibc.malloc.tcache_count=0:glibc.malloc.mxfast=0"
VARIABLE = "GLIBC_TUNABLES"


def environment() -> dict[str, str]:
    """The environment variable that a process has to start with, added to its present value."""
    own = os.environ.get(VARIABLE, "")
    return {VARIABLE: own if SETTINGS in own else ":".join(filter(None, (own, SETTINGS)))}


def restart() -> None:
    """Restart this program with `SETTINGS`; returns if it has them already, or if there is no glibc.

    The process keeps its id, its open files and its arguments. Call it only at the start of a program.
    """
    if SETTINGS in os.environ.get(VARIABLE, "") or platform.libc_ver()[0] != "glibc":
        return
    os.environ.update(environment())
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def keep_pages() -> bool:
    """Have glibc keep freed memory.

    Otherwise it returns memory to the system and faults it in again in each layer. Returns whether glibc was
    there and accepted it.
    """
    trim_threshold, mmap_max = -1, -4  # as in malloc.h
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    return bool(mallopt(mmap_max, 0) and mallopt(trim_threshold, 2**31 - 1))


def release_free_memory() -> None:
    """Return free memory to the system, also from the middle of the heap; does nothing without glibc."""
    _malloc_trim(0)


def _trim() -> Callable[[int], int]:
    try:
        return ctypes.CDLL(None).malloc_trim
    except (OSError, AttributeError, TypeError):  # only glibc has it
        return lambda pad: 0


_malloc_trim = _trim()
