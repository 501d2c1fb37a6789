"""What a site keeps of a run: whole after a kill at any moment, and the last two rounds of it."""

from __future__ import annotations

import errno
import os
import random
import stat
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest

from shepherd.core import Adapter, Update
from shepherd.errors import CheckpointError, FolderError
from shepherd.run import checkpoint
from shepherd.silos.site import site_store as store_module
from shepherd.silos.site.released import Score
from shepherd.silos.site.site_store import AnsweredRound, RunRecord, Store

RUN, OTHER = "0123456789abcdef", "f" * 16


def kept(round: int, size: int = 3) -> AnsweredRound:
    """A state that tells its round in each of its parts."""
    memory = Adapter({"a": np.full((2, size), round), "b": np.full(1, np.nan)}) if round else Adapter()
    delta = Adapter({"b": np.full(250 * size, round, np.float32)})
    update = Update(
        round=round,
        clients=("site-1",),
        delta=delta,
        weight=4.0,
        metrics={"loss": 1 / 3, "steps": float(round)},
    )
    return AnsweredRound(
        round=round,
        id=f"{round:032x}",
        update=update,
        start=5 * round,
        position=7 * round,
        different=2,
        examples=40,
        moved=1.5,
        memory=memory,
        adapter=delta.times(0.5),
    )


def test_a_new_run_has_no_state(tmp_path) -> None:
    store = Store(tmp_path)
    assert (store.kept(RUN), store.record(RUN), store.before(RUN, 5)) == ((), RunRecord(), None)
    assert store.answered(RUN, "0" * 32) is None


def test_states_come_back_from_memory_and_from_the_disk(tmp_path) -> None:
    store = Store(tmp_path)
    for round in (0, 1, 4):  # not asked in between
        store.save(RUN, kept(round))
    store.save(OTHER, kept(2))
    for found in (store, Store(tmp_path)):
        assert found.kept(RUN) == (kept(1), kept(4))  # two are kept
        assert found.kept(OTHER) == (kept(2),)
        assert (found.record(RUN).round, found.record(RUN).position) == (4, 28)
        assert [found.before(RUN, round) for round in (1, 2, 4, 5, 9)] == [
            None, kept(1), kept(1), kept(4), kept(4),
        ]  # fmt: skip
        assert found.answered(RUN, kept(4).id) == kept(4)
        assert found.answered(RUN, kept(0).id) is None
        assert found.answered(OTHER, kept(4).id) is None


def test_a_start_that_the_disk_lost_is_lost_and_nothing_else(tmp_path) -> None:
    store = Store(tmp_path)
    for round in range(4):
        store.save(RUN, kept(round))
    folder = tmp_path / "state" / RUN
    assert sorted(path.name for path in folder.glob("start-*")) == ["start-00003", "start-00004"]
    assert {stat.S_IMODE(path.stat().st_mode) for path in folder.glob("start-*")} == {0o600}
    first, last = folder / "start-00003", folder / "start-00004"
    last.write_bytes(bytes(last.stat().st_size))  # as a file system leaves it that had not written it yet
    first.unlink()
    assert Store(tmp_path).kept(RUN) == (replace(kept(2), adapter=None), replace(kept(3), adapter=None))


def test_a_start_of_an_earlier_version_stands_in_the_checkpoint(tmp_path) -> None:
    saved = store_module._to_checkpoint(kept(1), "")
    state = replace(saved.state, adapter=kept(1).adapter)
    checkpoint.save(tmp_path / "state" / RUN, replace(saved, state=state), keep=2)
    assert Store(tmp_path).kept(RUN) == (kept(1),)


def test_of_many_runs_the_tensors_go_and_where_each_was_stays(tmp_path) -> None:
    store = Store(tmp_path)
    runs = [f"{number:016x}" for number in range(10)]
    for run in runs:
        store.save(run, kept(3))
    assert [run for run in runs if store.kept(run)] == runs[2:]
    for found in (store, Store(tmp_path)):
        for run in runs:
            assert found.record(run) == RunRecord(round=3, id=kept(3).id, position=21)


def test_a_record_stays_a_year(tmp_path) -> None:
    store = Store(tmp_path)
    for run, days in ((RUN, 364), (OTHER, 366)):
        store.save(run, kept(0))
        store.save_score(run, 0, "a" * 32, {})
        then = time.time() - 86_400 * days
        os.utime(tmp_path / "runs" / f"{run}.json", (then, then))
    store.save("1" * 16, kept(0))
    assert sorted(path.stem for path in (tmp_path / "runs").iterdir()) == [RUN, "1" * 16]


def test_what_was_scored_is_kept_beside(tmp_path) -> None:
    store = Store(tmp_path)
    score = {"qa": Score(mean=2.31, tokens=812, examples=40), "other": Score(0.1, 9, 16)}
    store.save_score(RUN, 0, "a" * 32, score)
    store.save(RUN, kept(0))
    assert Store(tmp_path).record(RUN) == RunRecord(
        id=kept(0).id, round=0, scored=0, scored_id="a" * 32, score=score
    )


def test_a_record_of_an_earlier_version_has_no_score(tmp_path) -> None:
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / f"{RUN}.json").write_text(
        '{"round": 3, "id": "", "position": 9, "scored": 2, "scored_id": "b"}'
    )
    assert Store(tmp_path).record(RUN) == RunRecord(round=3, position=9, scored=2, scored_id="b")


def test_a_round_that_came_to_nothing_is_over(tmp_path) -> None:
    store = Store(tmp_path)
    store.save(RUN, kept(0))
    store.spend(RUN, 1, "b" * 32, 12)
    for found in (store, Store(tmp_path)):
        assert found.record(RUN) == RunRecord(round=1, id="b" * 32, position=12, spent=True)
        assert found.before(RUN, 2) == kept(0)
    store.save(RUN, kept(2))
    assert store.record(RUN) == RunRecord(round=2, id=kept(2).id, position=14)


def test_a_kill_between_the_state_and_the_record_loses_neither(tmp_path) -> None:
    Store(tmp_path).save(RUN, kept(0))
    before = (tmp_path / "runs" / f"{RUN}.json").read_bytes()
    Store(tmp_path).save(RUN, kept(1))
    (tmp_path / "runs" / f"{RUN}.json").write_bytes(before)
    assert Store(tmp_path).record(RUN) == RunRecord(round=1, id=kept(1).id, position=7)


def test_a_damaged_record_is_told(tmp_path) -> None:
    Store(tmp_path).save(RUN, kept(0))
    (tmp_path / "runs" / f"{RUN}.json").write_text("{")
    with pytest.raises(FolderError, match=r"the record .*\.json cannot be read .*; delete it"):
        Store(tmp_path).record(RUN)


def test_the_secret_is_drawn_once_for_its_owner_alone(tmp_path) -> None:
    first = Store(tmp_path).secret()
    assert Store(tmp_path).secret() == first > 2**128
    assert stat.S_IMODE((tmp_path / "secret").stat().st_mode) == 0o600
    (tmp_path / "other").mkdir()
    assert Store(tmp_path / "other").secret() != first
    (tmp_path / "secret").write_text("12")
    with pytest.raises(FolderError, match="was cut or changed; delete it"):
        Store(tmp_path).secret()


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
        CheckpointError, match=r"cut or changed; delete .*round-00002 to continue from round-00001"
    ):
        Store(tmp_path).kept(RUN)


SAVING = """
import sys
from pathlib import Path
from shepherd.silos.site.site_store import Store
from tests.silos.site.test_site_store import RUN, kept

store = Store(Path(sys.argv[1]))
for round in range(store.record(RUN).round + 1, 10**6):
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


def test_a_visit_that_an_earlier_version_kept_is_read(tmp_path, monkeypatch) -> None:
    def before(kept: AnsweredRound, start: str):
        saved = honest(kept, start)
        return replace(saved, notes={key: note for key, note in saved.notes.items() if key != "different"})

    honest = store_module._to_checkpoint
    with monkeypatch.context() as patched:
        patched.setattr(store_module, "_to_checkpoint", before)
        Store(tmp_path).save(RUN, kept(1))
    (back,) = Store(tmp_path).kept(RUN)
    assert (back.round, back.different) == (1, 2)  # from 5 to 7
