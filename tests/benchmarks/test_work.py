"""Memory is that of all processes together, with what they share counted once."""

import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from benchmarks.work import held_bytes

MIB = 2**20
FAMILY = """
import mmap, subprocess, sys
with open(sys.argv[1], "rb") as file:
    mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
read = sum(mapped[:: mmap.PAGESIZE])
own = b"x" * int(sys.argv[2])
if len(sys.argv) > 3:
    child = subprocess.Popen([sys.executable, sys.argv[0], sys.argv[1], str(32 * 2**20)])
print("ready", flush=True)
sys.stdin.read()
"""


@pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="Linux alone tells what is mapped from files"
)
def test_what_processes_map_from_one_file_counts_once(tmp_path: Path) -> None:
    file, program = tmp_path / "weights", tmp_path / "family.py"
    file.write_bytes(bytes(64 * MIB))
    program.write_text(FAMILY)
    words = [sys.executable, str(program), str(file)]
    with subprocess.Popen(
        [*words, str(96 * MIB), "child"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as parent:
        assert parent.stdout is not None
        assert [parent.stdout.readline() for _ in range(2)] == [b"ready\n"] * 2
        watched = psutil.Process(parent.pid)
        apart = sum(each.memory_info().rss for each in (watched, *watched.children()))
        held = held_bytes(watched)
        parent.communicate()
    assert held >= (64 + 96 + 32) * MIB  # the file, the parent's own, the child's own
    assert held <= apart - 64 * MIB


def test_a_process_that_has_ended_holds_nothing() -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as ended:
        watched = psutil.Process(ended.pid)
    assert held_bytes(watched) == 0
