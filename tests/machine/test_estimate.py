"""What a run is expected to take: against the weights that are there, and a clock that the test turns."""

from __future__ import annotations

from dataclasses import replace

import pytest
from tests.model import bases

from shepherd.algorithms import fedavg
from shepherd.core import Transform
from shepherd.federation.clients import LocalClients
from shepherd.machine import estimate, memory
from shepherd.machine.plan import Plan
from shepherd.overrides import parse
from shepherd.settings import RunSettings, TuningTable

TABLE = TuningTable(batch_size=2)
PLAN = Plan(
    dtype="float32",
    device="cpu",
    threads=1,
    workers=1,
    stack_size=2,
    micro_batch_tokens=64,
    commit=None,
    date="",
)


def clocked(monkeypatch: pytest.MonkeyPatch, *seconds: float) -> None:
    """Each trial takes so long."""
    times = (time for each in seconds for time in (0.0, each))
    monkeypatch.setattr(estimate, "perf_counter", lambda: next(times))


def test_seconds_are_the_rounds_tokens_by_the_speed_of_the_largest_trial(llama, monkeypatch) -> None:
    clocked(monkeypatch, 9.0, 0.5, 0.8)  # to warm up; 260 tokens; a whole pass of 300
    sample = bases.tokens(60, [10] * 60)
    found = estimate.expected(
        llama, TABLE, replace(PLAN, micro_batch_tokens=300), sample, round_tokens=5000, step_tokens=5000
    )
    assert found.seconds_a_round == pytest.approx(5000 / (300 / 0.8))


def run_of(**tables: dict[str, object]) -> RunSettings:
    given = {
        "model": {"base": "b"},
        "data": {"source": "s"},
        "federation": {"rounds": 1, "weights": "equal"},
    }
    return parse({**given, "tuning": {"batch_size": 32, "max_steps": 4}, **tables})


def test_a_client_of_few_examples_makes_small_steps() -> None:
    """Of 40 examples, steps of 32, 8, 32 and 8; of 2, four of 2."""
    found = estimate.amounts(run_of(), [2, 2, 40], cohort=3.0, length=10.0)
    assert found.step_tokens == pytest.approx(10 * (2 + 2 + 32) / 3)
    assert found.round_tokens == pytest.approx(10 * (8 + 8 + 80))
    half = estimate.amounts(run_of(tuning={"batch_size": 32}), [2, 2, 40], cohort=1.5, length=10.0)
    assert half.round_tokens == pytest.approx(10 * 44 / 2)


def test_steps_that_are_drawn_by_chance_have_no_end_of_an_epoch() -> None:
    """Of 40 examples, four draws of 32 on average."""
    noisy = run_of(privacy={"examples": {"noise": 1.0, "norm": 1.0}})
    assert estimate.amounts(noisy, [40], cohort=1.0, length=10.0).round_tokens == 1280


@pytest.mark.parametrize("tuning", [{"max_steps": 1}, {"max_steps": 3}, {"epochs": 0.6}])
def test_a_run_of_many_rounds_takes_what_its_clients_take(tuning) -> None:
    settings = run_of(tuning={"batch_size": 32, **tuning}, federation={"rounds": 20})
    sizes = {"a": 2, "b": 33, "c": 70}
    clients = LocalClients(
        datasets={name: bases.tokens(60, [10] * size) for name, size in sizes.items()},
        algorithm=fedavg.ALGORITHM,
        transform=Transform(),
        tuning=settings.tuning,
        federation=settings.federation,
        micro_batch_tokens=64,
        order_seed=0,
    )
    seen, places = 0, dict.fromkeys(sizes, 0)
    for _ in range(settings.federation.rounds):
        for name in sizes:
            batches = clients.batches(name, places[name])
            seen, places[name] = seen + 10 * sum(map(len, batches.indices)), batches.position
    found = estimate.amounts(settings, list(sizes.values()), cohort=3.0, length=10.0)
    assert found.round_tokens * settings.federation.rounds == pytest.approx(seen)


def test_a_slow_base_is_tried_on_little(llama, monkeypatch) -> None:
    clocked(monkeypatch, 9.0, 50.0)
    sample = bases.tokens(60, [10] * 60)
    each = estimate.seconds_a_token(llama, TABLE, replace(PLAN, micro_batch_tokens=4096), sample, 5000)
    assert each == pytest.approx(50 / 260)


def test_of_several_workers_each_is_as_fast_as_this_process_with_its_threads(llama, monkeypatch) -> None:
    clocked(monkeypatch, 9.0, 50.0)
    used, before = [], memory.threads()
    monkeypatch.setattr(estimate.memory, "threads", lambda: 4)
    monkeypatch.setattr(estimate.memory, "use_threads", used.append)
    each = estimate.seconds_a_token(
        llama, TABLE, replace(PLAN, workers=2, micro_batch_tokens=4096), bases.tokens(60, [10] * 60), 5000
    )
    assert each == pytest.approx(50 / 260 / 2)
    assert used == [2, 4]
    monkeypatch.undo()
    assert memory.threads() == before


def test_little_data_are_tried_whole(llama, monkeypatch) -> None:
    clocked(monkeypatch, 9.0, 0.1)
    sample = bases.tokens(3, [10] * 3)
    assert estimate.seconds_a_token(
        llama, TABLE, replace(PLAN, micro_batch_tokens=4096), sample, 5000
    ) == pytest.approx(0.1 / 30)


def test_no_trial_is_larger_than_the_passes_of_the_run(llama, monkeypatch) -> None:
    """Two clients with steps of 20 tokens: a pass has 40, whatever would fit."""
    clocked(monkeypatch, 9.0, 0.1)
    plan = replace(PLAN, micro_batch_tokens=4096)
    assert estimate.pass_tokens(plan, step_tokens=20) == 40
    each = estimate.seconds_a_token(llama, TABLE, plan, bases.tokens(60, [10] * 60), step_tokens=20)
    assert each == pytest.approx(0.1 / 40)


def test_clients_of_few_examples_share_a_trial_by_their_own_steps(llama, monkeypatch) -> None:
    """Steps of 2 examples, although a batch may have 8: a stack of 4 clients is 8 examples."""
    tried: list[list[int]] = []
    monkeypatch.setattr(
        estimate.tune, "tune", lambda base, job: tried.append([len(v.batches[0]) for v in job.visits])
    )
    plan, table = replace(PLAN, stack_size=4, micro_batch_tokens=4096), TuningTable(batch_size=8)
    clocked(monkeypatch, 9.0, 0.5)
    estimate.seconds_a_token(llama, table, plan, bases.tokens(60, [10] * 8), step_tokens=20)
    assert tried == [[1], [2, 2, 2, 2]]


def test_each_process_holds_the_base_and_its_own_passes(llama) -> None:
    def total(**changes: int) -> int:
        return estimate.memory_of(llama, replace(PLAN, **changes), step_tokens=5000).total

    one = total()
    kept = round(estimate.ACTIVATION_MARGIN * 64 * memory.bytes_per_token(llama))
    adapters = 2 * memory.ADAPTER_COPIES * sum(4 * tensor.size for tensor in llama.zero.values())
    assert one == memory.PROCESS_BYTES + memory.weight_bytes(llama) + kept + adapters
    assert total(workers=3) == 4 * (memory.PROCESS_BYTES + memory.weight_bytes(llama)) + 3 * (kept + adapters)
    assert total(micro_batch_tokens=128) - one == pytest.approx(kept, rel=1e-6)
    small = estimate.memory_of(llama, PLAN, step_tokens=16, process=7, server=5)  # two of 16 tokens a pass
    assert (small.activations, small.process, small.server) == (kept // 2, 7, 5)
    assert small.total == 7 + 5 + memory.weight_bytes(llama) + kept // 2 + adapters


def test_actors_are_apart_and_each_node_holds_its_own(llama) -> None:
    def memory_of(workers: int, nodes: int) -> estimate.Memory:
        return estimate.memory_of(llama, replace(PLAN, workers=workers), step_tokens=5000, nodes=nodes)

    assert memory_of(8, 8) == memory_of(1, 1)
    assert memory_of(8, 4) == memory_of(2, 0) == memory_of(7, 4)
    assert memory_of(1, 1).base == 2 * memory_of(1, 0).base


def test_a_trial_is_a_step_of_a_whole_stack(llama, monkeypatch) -> None:
    """60 examples are 15 for each of 4 clients; 3 examples are 2 batches."""
    tried: list[list[int]] = []

    def noted(base, job):
        tried.append([len(batch) for visit in job.visits for batch in visit.batches])

    monkeypatch.setattr(estimate.tune, "tune", noted)
    clocked(monkeypatch, 9.0, 0.5, 0.8)
    plan = replace(PLAN, stack_size=4, micro_batch_tokens=4096)
    estimate.seconds_a_token(llama, TABLE, plan, bases.tokens(60, [10] * 60), step_tokens=5000)
    assert tried == [[1], [7, 7, 6, 6], [15, 15, 15, 15]]
    tried.clear()
    clocked(monkeypatch, 9.0, 0.5)
    estimate.seconds_a_token(llama, TABLE, plan, bases.tokens(60, [10] * 3), step_tokens=5000)
    assert tried == [[1], [2, 1]]
