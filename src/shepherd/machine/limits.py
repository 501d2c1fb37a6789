"""What this process may use of the machine's cores and memory, where a container or a batch job gets a part.

Linux alone tells of such parts: the cores that a process may run on, and control groups of both versions,
whose limits hold for all groups below, so that the least of them counts.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil

GROUPS = Path("/proc/self/cgroup")
"""The control groups of this process: lines of "number:controllers:path"."""
ROOT = Path("/sys/fs/cgroup")


def cores() -> int:
    """Physical cores, as far as this process may use them; 1 or more."""
    most = min(psutil.cpu_count(logical=False) or 1, _cpu_quota())
    if hasattr(psutil.Process, "cpu_affinity"):  # not on macOS
        most = min(most, len(psutil.Process().cpu_affinity() or [0]))
    return max(1, math.floor(most))


def available_bytes() -> int:
    """Memory that this process can still take without swapping, in bytes."""
    return max(0, min([int(psutil.virtual_memory().available), *_free_of_groups()]))


def _cpu_quota() -> float:
    """Processors' worth of time that the control groups allow; infinite where they set no limit."""
    quotas = [math.inf]
    for folder in _folders("cpu"):
        with suppress(OSError, ValueError):
            quota, period = (folder / "cpu.max").read_text().split()
            quotas.append(float(quota) / float(period))  # "max" is no number
        with suppress(OSError, ValueError):
            quota, period = ((folder / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
            quotas += [float(quota) / float(period)] if float(quota) > 0 else []
    return min(quotas)


def _free_of_groups() -> list[int]:
    """Bytes that are left of each control group's limit; pages of files that can be dropped count as free."""
    free = []
    for folder in _folders("memory"):
        for limit, used, cache in (
            ("memory.max", "memory.current", "inactive_file"),
            ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
        ):
            with suppress(OSError, ValueError):
                counts = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
                held = int((folder / used).read_text()) - int(counts.get(cache, 0))
                free.append(int((folder / limit).read_text()) - held)
    return free


def _folders(controller: str) -> Iterator[Path]:
    """Folders of the control groups above this process, from its own to the root, in both versions.

    In a container the path may be that of the host, of which only the root is seen.
    """
    lines: list[str] = []
    with suppress(OSError):
        lines = GROUPS.read_text().splitlines()
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        roots = [ROOT / controllers, ROOT / controller] if controllers else [ROOT, ROOT / "unified"]
        for root in dict.fromkeys(roots):
            own = root / path.lstrip("/")
            yield from (folder for folder in (own, *own.parents) if folder.is_relative_to(root))
