"""A lock is one process's, and goes with it."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest

from shepherd.io import lock

HOLD = (
    "import sys; from shepherd.io import lock; lock.acquire(sys.argv[1]); print('held', flush=True); input()"
)


@pytest.fixture
def other(tmp_path):
    """Another process that holds `tmp_path/lock`."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path / "lock")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_one_process_at_a_time_and_no_longer_than_it_lives(tmp_path, other):
    path = tmp_path / "lock"
    with pytest.raises(BlockingIOError):
        lock.acquire(path)
    assert lock.is_held(path) is True
    other.kill()
    other.wait()
    assert lock.is_held(path) is False
    os.close(lock.acquire(path))


def test_who_waits_gets_it_when_it_is_free(tmp_path, other):
    began = time.monotonic()
    with pytest.raises(BlockingIOError):
        lock.acquire(tmp_path / "lock", wait_s=0.3)
    assert time.monotonic() - began >= 0.3
    other.kill()
    other.wait()
    os.close(lock.acquire(tmp_path / "lock", wait_s=30))


def test_what_a_link_points_to_is_never_locked(tmp_path):
    (tmp_path / "target").touch()
    (tmp_path / "lock").symlink_to(tmp_path / "target")
    with pytest.raises(OSError, match="symbolic link"):
        lock.acquire(tmp_path / "lock")


def test_nothing_is_known_of_a_lock_that_is_not_there(tmp_path):
    assert lock.is_held(tmp_path / "lock") is None
    assert not (tmp_path / "lock").exists()
