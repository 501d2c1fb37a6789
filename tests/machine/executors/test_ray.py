"""Ray: the same bits as in this process, on one machine and on two nodes of which one is killed.

What starts Ray takes a while and is marked so: run it with `make test-ray`.
"""

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
from tests.machine.executors.test_processes import jobs, silent, untrained, visit
from tests.model import bases

from shepherd.consent import Consent
from shepherd.core import Failure
from shepherd.data.tokens import Tokens
from shepherd.errors import BaseError, DataError, FederationError, SettingsError
from shepherd.machine.executors import Inline, RayActors, ray
from shepherd.model.base import Base
from shepherd.settings import RayTable
from shepherd.training.tune import Job, Visit

TWO = RayTable(actors=2)
ROOT = Path(__file__).parents[3]


def test_without_ray_the_sentence_says_what_to_install(llama, monkeypatch) -> None:
    monkeypatch.setattr(ray, "find_spec", lambda name: None)
    with pytest.raises(SettingsError, match=r"machine.ray needs Ray, .*\[ray\]"):
        RayActors(TWO, 2, llama)


def test_nothing_is_imported_or_started_before_the_first_job(llama) -> None:
    code = "import sys; import shepherd.machine.executors; print('ray' in sys.modules)"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert said.stdout == "False\n"
    RayActors(TWO, 2, llama).close()


def test_views_of_one_part_of_a_map_are_the_same_tokens() -> None:
    whole = bases.tokens(7, [5, 6, 7])
    first, second = whole.split([1, 2]), whole.split([1, 2])
    assert ray._same(first[1], second[1])
    assert not ray._same(first[0], second[1])
    assert not ray._same(first[1], first[1].take([0, 1]))  # another place; it may change on its own
    assert not ray._same(whole, replace(whole, loss_mask=whole.loss_mask.copy()))


@pytest.fixture(scope="module")
def importable() -> Iterator[None]:
    """Actors import this module; what is started here inherits the path."""
    with pytest.MonkeyPatch.context() as patch:
        path = [str(ROOT / "src"), str(ROOT), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
        patch.setenv("PYTHONPATH", os.pathsep.join(filter(None, path)))
        patch.setenv("OMP_NUM_THREADS", "1")
        yield


def _of_ray() -> list[psutil.Process]:
    """All processes below this one that Ray started."""
    return [child for child in psutil.Process().children(recursive=True) if child.status() != "zombie"]


@pytest.mark.ray
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_a_ray_of_ones_own_makes_the_same_bits_and_listens_on_this_machine_alone(
    llama, importable, one_thread, capfd, monkeypatch, tmp_path
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    actors, heard = RayActors(TWO, 2, llama), []
    try:
        ours = list(Inline(llama).tuned(jobs(llama), silent))
        assert list(actors.each(described, range(5))) == [(item, "LlamaForCausalLM") for item in range(5)]
        library, put = ray._ray(), []
        monkeypatch.setattr(library, "put", lambda value, own=library.put: put.append(value) or own(value))
        theirs = list(actors.tuned(jobs(llama), lambda number, told: heard.append((number, told.tokens))))
        assert theirs == ours
        for number, tokens in heard:
            assert tokens <= sum(tuned.report.tokens for tuned in ours[number])
        # every job of the test has a broadcast and data of its own; ann and eve share a job
        assert len(put) == len([each for each in ours if each]) + 1 + sum(map(len, ours))
        # the same tokens are not put twice, and the broadcast of a round once
        sent = jobs(llama)[0].broadcast
        again, put[:] = [replace(each, broadcast=sent) for each in jobs(llama)[:4]], []
        for _ in range(2):
            assert list(actors.tuned(again, silent)) == ours[:4]
        assert len([value for value in put if isinstance(value, tuple)]) == sum(map(len, ours[:4]))
        assert len([value for value in put if not isinstance(value, tuple)]) == 1
        places = {
            connection.laddr.ip.removeprefix("::ffff:")
            for process in _of_ray()
            for connection in process.net_connections()
            if connection.status == psutil.CONN_LISTEN
        }
        assert places == {"127.0.0.1"}
        assert os.environ["RAY_USAGE_STATS_ENABLED"] == "0"
    finally:
        actors.close()
    actors.close()
    assert not library.is_initialized()
    assert not [path for path in tmp_path.rglob("*") if "auth" in path.name]  # no token is left behind
    said = capfd.readouterr()
    assert (said.out, said.err) == ("", "")


def described(base: Base, item: int) -> tuple[int, str]:
    return item, type(base.model).__name__


def deadly(base: Base, item: int) -> int:
    if item == 1:
        os._exit(1)
    return item


def failing(base: Base, item: int) -> float:
    return 1 / item


def _fatal(memory, broadcast, result):
    os._exit(1)


@pytest.fixture(scope="module")
def cluster(importable) -> Iterator[object]:
    """Two nodes of one CPU, on this machine."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    from ray.cluster_utils import Cluster

    nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    nodes.second = nodes.add_node(num_cpus=1)
    yield nodes
    nodes.shutdown()


@pytest.fixture
def actors(llama, cluster) -> Iterator[RayActors]:
    made = RayActors(TWO, 2, llama, Consent(ray_address=cluster.address))
    yield made
    made.close()


@pytest.mark.ray
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_mistakes_come_back_as_their_sentence_and_the_actors_live_on(llama, actors, one_thread) -> None:
    data = visit("ann").data
    bad = replace(jobs(llama)[0], visits=[Visit(client="ann", data=untrained(data), batches=[np.array([0])])])
    with pytest.raises(DataError, match="client ann has a step without a trained token"):
        list(actors.tuned([bad], silent))
    with pytest.raises(FederationError, match=r"a Ray actor on .* failed \(ZeroDivisionError"):
        list(actors.each(failing, [1, 0]))
    assert list(actors.tuned(jobs(llama), silent)) == list(Inline(llama).tuned(jobs(llama), silent))


@pytest.mark.ray
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_clients_whose_actors_die_every_time_fail_by_name_and_the_others_do_not(
    llama, actors, one_thread
) -> None:
    asked = jobs(llama)
    asked[0] = replace(asked[0], algorithm=replace(asked[0].algorithm, remember=_fatal))
    found, plain = list(actors.tuned(asked, silent)), list(Inline(llama).tuned(jobs(llama), silent))
    assert found[1:] == plain[1:]
    assert [(type(each), each.client) for each in found[0]] == [(Failure, "ann"), (Failure, "bob")]
    assert all("died 3 times" in each.reason for each in found[0])
    with pytest.raises(FederationError, match="one piece of work died 3 times"):
        list(actors.each(deadly, range(3)))


@pytest.mark.ray
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_a_base_that_differs_on_a_node_is_named(llama, cluster) -> None:
    other = RayActors(TWO, 2, replace(llama, fingerprint="0" * 64), Consent(ray_address=cluster.address))
    try:
        with pytest.raises(BaseError, match=r"the Ray node .* has another base under the same name"):
            list(other.each(described, [0]))
    finally:
        other.close()


@pytest.mark.ray
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_without_room_for_an_actor_the_sentence_says_what_each_needs(llama, cluster) -> None:
    table = RayTable(actors=1, cpus=64, start_s=2.0)
    large = RayActors(table, 1, llama, Consent(ray_address=cluster.address))
    try:
        with pytest.raises(
            FederationError, match="no Ray actor was ready within 2 s: each needs 64 CPU on one"
        ):
            list(large.each(described, [0]))
    finally:
        large.close()


def _long(tokens: Tokens) -> Visit:
    size = len(tokens)
    return replace(visit("eve"), data=tokens, batches=[np.arange(size)] * 12, trained_tokens=_counts(tokens))


def _counts(tokens: Tokens) -> np.ndarray:
    return Visit(client="eve", data=tokens, batches=[]).trained_tokens


def _longer(job: Job, name: str) -> Job:
    data = bases.tokens(len(name), [12] * 12)
    return replace(job, visits=[replace(_long(data), client=name)])


@pytest.mark.ray
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_a_node_that_is_killed_in_the_middle_costs_time_and_no_bit(
    llama, cluster, actors, one_thread
) -> None:
    # the largest is the first, whose result comes while most others are still to be done
    asked = [_longer(jobs(llama)[0], "c" * size) for size in range(12, 0, -1)]
    plain = list(Inline(llama).tuned(asked, silent))
    results = actors.tuned(asked, silent)
    found = [next(results)]
    begun = set(actors._crew.handles)
    cluster.remove_node(cluster.second, allow_graceful=False)
    found += results
    assert found == plain
    assert set(actors._crew.handles) - begun  # an actor was lost, and another waits for a place
    cluster.second = cluster.add_node(num_cpus=1)


SCRIPT = """
import sys
from pathlib import Path
from tests.machine.executors.test_ray import TWO, _longer
from tests.machine.executors.test_processes import jobs, silent
from tests.model import bases
from shepherd.machine.executors import RayActors
base = bases.load(Path(sys.argv[1]))
actors = RayActors(TWO, 2, base)
try:
    for each in actors.tuned([_longer(jobs(base)[0], "c" * size) for size in range(1, 200)], silent):
        print("one", flush=True)
except KeyboardInterrupt:
    print("stopped", flush=True)
finally:
    actors.close()
"""


@pytest.mark.ray
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_ctrl_c_and_a_kill_leave_nothing_of_a_ray_of_ones_own(llama_folder, importable, how) -> None:
    run = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(llama_folder)],
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        start_new_session=True,  # a terminal's Ctrl-C goes to the whole group, and here to none of ours
    )
    with run:
        assert run.stdout is not None
        assert run.stdout.readline() == "one\n"
        children = psutil.Process(run.pid).children(recursive=True)
        assert len(children) >= 4
        (os.killpg if how == signal.SIGINT else os.kill)(run.pid, how)
        said = run.stdout.read()
    assert said.endswith("stopped\n") == (how == signal.SIGINT)
    deadline = time.monotonic() + 120  # one of Ray's own agents looks once a minute
    while any(child.is_running() and child.status() != "zombie" for child in children):
        assert time.monotonic() < deadline
        time.sleep(0.2)
