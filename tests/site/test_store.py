"""What a site keeps of a run: whole after a kill at any moment, and the last two rounds of it."""

from __future__ import annotations

import errno
import os
import random
import subprocess
import sys
import time

import numpy as np
import pytest

from shepherd.core import Adapter
from shepherd.errors import CheckpointError, FolderError
from shepherd.site.store import Kept, Store

RUN, OTHER = "0123456789abcdef", "f" * 16


def kept(round: int, size: int = 3) -> Kept:
    """A state that tells its round in each of its parts."""
    memory = Adapter({"a": np.full((2, size), round), "b": np.full(1, np.nan)}) if round else Adapter()
    reply = bytes([round % 256]) * (1000 * size)
    return Kept(round=round, id=f"{round:032x}", reply=reply, position=7 * round, memory=memory)


def test_a_new_run_has_no_state(tmp_path) -> None:
    store = Store(tmp_path)
    assert (store.kept(RUN), store.last(RUN), store.before(RUN, 5)) == ((), None, None)
    assert store.answered(RUN, "0" * 32) is None


def test_states_come_back_from_memory_and_from_the_disk(tmp_path) -> None:
    store = Store(tmp_path)
    for round in (0, 1, 4):  # not asked in between
        store.save(RUN, kept(round))
    store.save(OTHER, kept(2))
    for found in (store, Store(tmp_path)):
        assert found.kept(RUN) == (kept(1), kept(4))  # two are kept
        assert found.kept(OTHER) == (kept(2),)
        assert found.last(RUN) == kept(4)
        assert [found.before(RUN, round) for round in (1, 2, 4, 5, 9)] == [
            None, kept(1), kept(1), kept(4), kept(4),
        ]  # fmt: skip
        assert found.answered(RUN, kept(4).id) == kept(4).reply
        assert found.answered(RUN, kept(0).id) is None
        assert found.answered(OTHER, kept(4).id) is None


def test_runs_of_long_ago_are_forgotten(tmp_path) -> None:
    store = Store(tmp_path)
    runs = [f"{number:016x}" for number in range(10)]
    for run in runs:
        store.save(run, kept(0))
    assert [run for run in runs if store.kept(run)] == runs[2:]


@pytest.mark.parametrize("call", ["fsync", "mkdir", "rename"])
def test_a_full_disk_leaves_the_state_before(tmp_path, monkeypatch, call) -> None:
    store = Store(tmp_path)
    store.save(RUN, kept(0))

    def full(*args: object, **options: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, call, full)
        with pytest.raises(FolderError, match="No space left on device"):
            store.save(RUN, kept(1))
    for found in (store, Store(tmp_path)):
        assert found.kept(RUN) == (kept(0),)
    store.save(RUN, kept(1))
    assert Store(tmp_path).kept(RUN) == (kept(0), kept(1))


def test_a_damaged_state_is_told_and_not_taken(tmp_path) -> None:
    Store(tmp_path).save(RUN, kept(0))
    Store(tmp_path).save(RUN, kept(1))
    tensors = tmp_path / "state" / RUN / "round-00002" / "tensors.safetensors"
    tensors.write_bytes(tensors.read_bytes()[:-1])
    with pytest.raises(
        CheckpointError, match=r"cut or changed; delete .*round-00002 to go on from round-00001"
    ):
        Store(tmp_path).kept(RUN)


SAVING = """
import sys
from pathlib import Path
from shepherd.site.store import Store
from tests.site.test_store import RUN, kept

store = Store(Path(sys.argv[1]))
last = store.last(RUN)
for round in range(last.round + 1 if last else 0, 10**6):
    store.save(RUN, kept(round, 2000))
    print(round, flush=True)
"""


def test_after_a_kill_at_any_moment_a_whole_state_is_there(tmp_path) -> None:
    """Law 3, for a site: all that was told to be saved is there, and perhaps one round more."""
    draw = random.Random(0)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    last = -1
    for _ in range(6):
        command = [sys.executable, "-c", SAVING, str(tmp_path)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) as process:
            told = [int(process.stdout.readline())]
            time.sleep(draw.uniform(0, 0.05))
            process.kill()
            told += map(int, process.stdout)
        assert told == [*range(last + 1, told[-1] + 1)]  # it went on from the last state
        found = Store(tmp_path).kept(RUN)
        rounds = [state.round for state in found]
        assert list(found) == [kept(round, 2000) for round in rounds]
        last = rounds[-1]
        assert last - told[-1] in (0, 1)
        assert rounds == [*range(last - len(rounds) + 1, last + 1)]
        assert len(rounds) <= 3  # killed before the oldest was deleted
    assert last >= 5  # a life saves one round at least
