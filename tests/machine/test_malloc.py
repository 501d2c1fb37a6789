"""The allocator's settings reach a process that starts again with them, once."""

from __future__ import annotations

import platform
import subprocess
import sys

import numpy as np
import psutil
import pytest

from shepherd.machine import malloc


def test_keeping_pages_tells_whether_it_could(monkeypatch) -> None:
    monkeypatch.setattr(malloc.sys, "platform", "darwin")
    assert malloc.keep_pages() is False


def test_settings_of_the_user_stay(monkeypatch) -> None:
    monkeypatch.delenv(malloc.VARIABLE, raising=False)
    assert malloc.environment() == {malloc.VARIABLE: malloc.SETTINGS}
    monkeypatch.setenv(malloc.VARIABLE, "glibc.malloc.check=1")
    both = f"glibc.malloc.check=1:{malloc.SETTINGS}"
    assert malloc.environment() == {malloc.VARIABLE: both}
    monkeypatch.setenv(malloc.VARIABLE, both)
    assert malloc.environment() == {malloc.VARIABLE: both}


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="there is no glibc here")
def test_a_program_starts_again_once_with_its_arguments(tmp_path, monkeypatch) -> None:
    monkeypatch.delenv(malloc.VARIABLE, raising=False)
    program = tmp_path / "program.py"
    program.write_text(
        "import os, sys\n"
        "from shepherd.machine import malloc\n"
        "known = os.environ.get(malloc.VARIABLE, '')\n"
        "print(os.getpid(), malloc.SETTINGS in known, sys.argv[1:], flush=True)\n"
        "malloc.restart()\n"
        "print('torch' in sys.modules)\n"
    )
    done = subprocess.run(
        [sys.executable, str(program), "a b", "c=1"], capture_output=True, text=True, check=True
    )
    first, second, third = done.stdout.splitlines()
    assert first.split()[1:] == ["False", "['a", "b',", "'c=1']"]
    assert second == first.replace("False", "True")  # the same process number
    assert third == "False"


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc's heap can be given back")
def test_what_is_free_in_the_middle_of_the_heap_goes_back_to_the_system() -> None:
    process, size = psutil.Process(), 100_000  # below what gets a mapping of its own
    held = [np.ones(size, np.uint8) for _ in range(1000)]
    held = held[::100]  # the rest is free, between those that are held
    before = process.memory_info().rss
    malloc.release_free_memory()
    assert process.memory_info().rss < before - 50 * 2**20
    assert all(array.all() for array in held)
