"""What a container or a batch job leaves of cores and memory."""

from __future__ import annotations

import os
from pathlib import Path

import psutil
import pytest

from shepherd.machine import limits, memory

GB = 10**9


@pytest.fixture
def groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Writes control groups: the lines of /proc/self/cgroup, and files by their path below the root."""
    monkeypatch.setattr(limits, "GROUPS", tmp_path / "cgroup")
    monkeypatch.setattr(limits, "ROOT", tmp_path / "root")

    def write(lines: str, files: dict[str, str]) -> None:
        (tmp_path / "cgroup").write_text(lines)
        for name, text in files.items():
            file = tmp_path / "root" / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text + "\n")

    return write


def v2(place: str, most: str, current: int, cache: int = 0) -> dict[str, str]:
    return {
        f"{place}memory.max": most,
        f"{place}memory.current": str(current),
        f"{place}memory.stat": f"anon 1\ninactive_file {cache}",
    }


def v1(place: str, most: int, current: int, cache: int = 0) -> dict[str, str]:
    return {
        f"{place}memory.limit_in_bytes": str(most),
        f"{place}memory.usage_in_bytes": str(current),
        f"{place}memory.stat": f"inactive_file 7\ntotal_inactive_file {cache}",
    }


@pytest.mark.parametrize(
    ("lines", "files", "due"),
    [
        ("0::/\n", v2("", str(GB), GB // 2, GB // 10), GB // 2 + GB // 10),
        ("0::/a/b\n", {**v2("a/b/", "max", 5), **v2("a/", str(GB), 10)}, GB - 10),
        ("0::/a/b\n", {**v2("a/b/", str(GB // 2), 5), **v2("a/", str(GB), 10)}, GB // 2 - 5),
        ("4:memory:/docker/x\n", v1("memory/", GB, GB // 4), GB - GB // 4),  # the host's path, unseen
        ("4:memory:/job\n1:cpu,cpuacct:/\n", v1("memory/job/", GB, 3, 2), GB - 1),
        ("0::/\n4:memory:/job\n", {**v1("memory/job/", GB, 0)}, GB),  # both versions at once
        ("0::/\n", v2("", str(GB), 2 * GB), 0),
    ],
)
def test_the_least_of_all_limits_above_a_process_counts(groups, lines, files, due) -> None:
    groups(lines, files)
    assert limits.available_bytes() == min(due, psutil.virtual_memory().available)
    assert memory.free_bytes(memory.torch.device("cpu")) <= due


@pytest.mark.parametrize(
    "files",
    [{}, v2("", "max", 5), v1("memory/", 9223372036854771712, 5), {"memory.max": "?"}, {"memory.max": ""}],
)
def test_without_a_limit_it_is_the_machines(groups, files, monkeypatch: pytest.MonkeyPatch) -> None:
    groups("0::/\n4:memory:/\n", files)
    free = psutil.virtual_memory()
    monkeypatch.setattr(psutil, "virtual_memory", lambda: free)
    assert limits.available_bytes() == free.available
    assert limits.cores() >= 1


@pytest.mark.parametrize(
    ("files", "due"),
    [
        ({"cpu.max": "250000 100000"}, 2),
        ({"cpu.max": "50000 100000"}, 1),
        ({"cpu.max": "max 100000"}, 8),
        ({"cpu/cpu.cfs_quota_us": "300000", "cpu/cpu.cfs_period_us": "100000"}, 3),
        ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, 8),
    ],
)
def test_a_quota_of_processor_time_is_so_many_cores(groups, files, due, monkeypatch) -> None:
    monkeypatch.setattr(psutil, "cpu_count", lambda logical: 8)
    monkeypatch.setattr(psutil.Process, "cpu_affinity", lambda self: list(range(16)), raising=False)
    groups("0::/\n2:cpu,cpuacct:/\n", files)
    assert limits.cores() == due


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system binds no process to cores")
def test_a_process_that_is_bound_to_one_core_uses_one() -> None:
    before = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(before)})
        assert limits.cores() == 1
    finally:
        os.sched_setaffinity(0, before)
