"""glibc's allocator, told to keep what it has and to use large pages. Brings no torch."""

from __future__ import annotations

import ctypes
import os
import platform
import sys
from collections.abc import Callable

# glibc reads these when a process starts. Huge pages: a tenth to a fifth faster. No small free blocks kept
# aside, which would stay between large ones, so that each tensor is looked for in long lists: a twentieth.
SETTINGS = "glibc.malloc.hugetlb=1:glibc.malloc.tcache_count=0:glibc.malloc.mxfast=0"
VARIABLE = "GLIBC_TUNABLES"


def environment() -> dict[str, str]:
    """The variable that a process has to start with, beside what it holds already."""
    own = os.environ.get(VARIABLE, "")
    return {VARIABLE: own if SETTINGS in own else ":".join(filter(None, (own, SETTINGS)))}


def restart() -> None:
    """Start this program again with `SETTINGS`; returns where it has them, or where there is no glibc.

    The process keeps its number, its files and its arguments. Only for a program's very beginning.
    """
    if SETTINGS in os.environ.get(VARIABLE, "") or platform.libc_ver()[0] != "glibc":
        return
    os.environ.update(environment())
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def keep_pages() -> bool:
    """Tell glibc to keep freed memory instead of giving it back and faulting it in again each layer.

    Returns whether there was a glibc to tell. Numbers are those of malloc.h.
    """
    trim_threshold, mmap_max = -1, -4
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    return bool(mallopt(mmap_max, 0) and mallopt(trim_threshold, 2**31 - 1))


def give_back() -> None:
    """Return what is free to the system, also from the middle of the heap; does nothing but on glibc."""
    _malloc_trim(0)


def _trim() -> Callable[[int], int]:
    try:
        return ctypes.CDLL(None).malloc_trim
    except (OSError, AttributeError, TypeError):  # only glibc has it
        return lambda pad: 0


_malloc_trim = _trim()
