"""Workers: the same bits as in this process, told in order; and what happens when one of them dies."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest
from tests.model import bases
from threadpoolctl import threadpool_info, threadpool_limits

from shepherd.algorithms import fedavg
from shepherd.core import Broadcast
from shepherd.data.tokens import Tokens
from shepherd.errors import DataError, FederationError
from shepherd.machine.executors import Inline, Processes
from shepherd.machine.executors.processes import LOOKAHEAD_JOBS
from shepherd.model.base import Base
from shepherd.settings import TuningTable
from shepherd.training.tune import Job, Progress, Visit

SIZES = {"ann": 3, "bob": 7, "cay": 5, "dan": 4, "eve": 6}


@pytest.fixture(scope="module")
def pair(llama_folder: Path) -> Iterator[Processes]:
    workers = Processes(2, 1, bases.load(llama_folder))
    yield workers
    workers.close()


@pytest.fixture(scope="module")
def single(llama) -> Iterator[Processes]:
    workers = Processes(1, 1, llama)
    yield workers
    workers.close()


def begun(folder: Path) -> Processes:
    return Processes(1, 1, bases.load(folder))


def visit(name: str) -> Visit:
    size = SIZES[name]
    data = bases.tokens(size, [5 + i % 6 for i in range(size)])
    return Visit(
        client=name, data=data, batches=[np.array([2, 0]), np.array([1]), np.array([0, 2])], seed=size
    )


def job(base, *names: str) -> Job:
    return Job(
        broadcast=Broadcast(round=0, adapter=bases.random_adapter(base, 5), seed=1),
        algorithm=fedavg.ALGORITHM,
        visits=[visit(name) for name in names],
        tuning=TuningTable(batch_size=2),
        learning_rate=0.01,
        micro_batch_tokens=64,
    )


def jobs(base) -> list[Job]:
    return [job(base, "ann", "bob"), job(base, "cay"), job(base), job(base, "dan"), job(base, "eve", "ann")]


def silent(number: int, told: Progress) -> None:
    pass


def test_workers_make_the_same_bits_as_this_process_in_the_jobs_order(llama, pair, one_thread) -> None:
    ours = list(Inline(llama).tuned(jobs(llama), silent))
    heard: list[tuple[int, Progress]] = []
    theirs = list(pair.tuned(jobs(llama), lambda number, told: heard.append((number, told))))
    assert theirs == ours
    assert [[tuned.client for tuned in each] for each in theirs] == [
        ["ann", "bob"],
        ["cay"],
        [],
        ["dan"],
        ["eve", "ann"],
    ]
    last = {number: told.tokens for number, told in heard}
    assert last == {k: sum(t.report.tokens for t in each) for k, each in enumerate(theirs) if each}


def test_jobs_are_taken_as_they_are_needed(llama, pair) -> None:
    taken = []

    def asked() -> Iterator[Job]:
        for number in range(40):
            taken.append(number)
            yield job(llama, "ann")

    results = pair.tuned(asked(), silent)
    next(results)
    assert len(taken) == 2 * LOOKAHEAD_JOBS
    results.close()
    heard: list[int] = []
    assert len(list(pair.tuned([job(llama, "bob")], lambda number, told: heard.append(number)))) == 1
    assert set(heard) == {0}  # nothing of the jobs that were given up


def test_any_work_is_done_with_a_workers_base_in_the_items_order(pair) -> None:
    assert list(pair.each(described, range(9))) == [(item, "LlamaForCausalLM") for item in range(9)]
    with pytest.raises(FederationError, match=r"a worker process failed \(ZeroDivisionError"):
        list(pair.each(failing, [1, 0]))


def described(base: Base, item: int) -> tuple[int, str]:
    return item, type(base.model).__name__


def failing(base: Base, item: int) -> float:
    return 1 / item


def test_the_largest_job_begins_first(llama, single) -> None:
    heard: list[int] = []
    asked = [job(llama, "cay"), job(llama, "ann"), job(llama, "ann", "bob", "eve"), job(llama, "ann", "bob")]
    found = list(single.tuned(asked, lambda number, told: heard.append(number)))
    assert list(dict.fromkeys(heard)) == [2, 3, 0, 1]
    assert [len(each) for each in found] == [1, 1, 3, 2]


def _blas() -> set[int]:
    return {each["num_threads"] for each in threadpool_info() if each["user_api"] == "blas"}


def test_numpy_leaves_the_cores_to_the_workers_while_they_compute(llama, pair) -> None:
    with threadpool_limits(2, user_api="blas"):
        results = pair.tuned(jobs(llama), silent)
        next(results)
        assert _blas() == {1}
        results.close()
        assert _blas() == {2}


def untrained(data: Tokens) -> Tokens:
    return replace(data, loss_mask=np.zeros_like(data.loss_mask))


def test_a_mistake_in_the_data_comes_back_as_its_sentence(llama, pair) -> None:
    data = visit("ann").data
    bad = replace(job(llama), visits=[Visit(client="ann", data=untrained(data), batches=[np.array([0])])])
    with pytest.raises(DataError, match="client ann has a step without a trained token"):
        list(pair.tuned([bad], silent))
    assert len(list(pair.tuned([job(llama, "ann")], silent))) == 1  # and the workers live on


def test_a_worker_that_dies_is_reported_with_what_to_do_and_another_goes_on(llama, single) -> None:
    """The last test that uses this worker."""
    results = single.tuned([job(llama, "ann")] * 3, silent)
    next(results)
    (worker,) = single._pool._processes.values()
    os.kill(worker.pid, signal.SIGKILL)
    with pytest.raises(FederationError, match="died, perhaps for lack of memory; resume with"):
        list(single.tuned([job(llama, "bob")] * 3, silent))
    assert len(list(single.tuned([job(llama, "bob")], silent))) == 1


SCRIPT = """
import sys, time
from pathlib import Path
from tests.machine.executors.test_processes import begun
workers = begun(Path(sys.argv[1]))
workers._pool.submit(int).result()
print("ready", flush=True)
time.sleep(600)
"""


FORGETFUL = """
import sys
from pathlib import Path
from tests.machine.executors.test_processes import begun, job, silent
from tests.model import bases
workers = begun(Path(sys.argv[1]))
print(len(list(workers.tuned([job(bases.load(Path(sys.argv[1])), "ann")], silent))))
"""


@pytest.mark.slow
def test_a_script_that_closes_nothing_ends_and_says_nothing(llama_folder, tmp_path) -> None:
    script = tmp_path / "script.py"  # and it needs no `if __name__ == "__main__"`
    script.write_text(FORGETFUL)
    ended = subprocess.run(
        [sys.executable, str(script), str(llama_folder)],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=Path(__file__).parents[3],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
    )
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "1\n", "")


def test_a_killed_parent_leaves_no_worker(llama_folder) -> None:
    parent = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(llama_folder)],
        stdout=subprocess.PIPE,
        cwd=Path(__file__).parents[3],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
    )
    with parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == b"ready\n"
        children = psutil.Process(parent.pid).children(recursive=True)
        assert len(children) >= 2
        parent.send_signal(signal.SIGKILL)
    deadline = time.monotonic() + 30
    while any(child.is_running() and child.status() != "zombie" for child in children):
        assert time.monotonic() < deadline
        time.sleep(0.1)
