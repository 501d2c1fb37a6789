"""What a run is expected to take: against the weights that are there, and a clock that the test turns."""

from __future__ import annotations

from dataclasses import replace

import pytest
from tests.model import bases

from shepherd.machine import estimate, memory
from shepherd.machine.plan import Plan
from shepherd.settings import TuningTable

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
    found = estimate.expected(llama, TABLE, replace(PLAN, micro_batch_tokens=300), sample, round_tokens=5000)
    assert found.seconds_a_round == pytest.approx(5000 / (300 / 0.8))


def test_a_slow_base_is_tried_on_little(llama, monkeypatch) -> None:
    clocked(monkeypatch, 9.0, 50.0)
    sample = bases.tokens(60, [10] * 60)
    speed = estimate.tokens_per_second(llama, TABLE, replace(PLAN, micro_batch_tokens=4096), sample)
    assert speed == pytest.approx(260 / 50)


def test_of_several_workers_each_is_as_fast_as_this_process_with_its_threads(llama, monkeypatch) -> None:
    clocked(monkeypatch, 9.0, 50.0)
    used, before = [], memory.threads()
    monkeypatch.setattr(estimate.memory, "threads", lambda: 4)
    monkeypatch.setattr(estimate.memory, "use_threads", used.append)
    speed = estimate.tokens_per_second(
        llama, TABLE, replace(PLAN, workers=2, micro_batch_tokens=4096), bases.tokens(60, [10] * 60)
    )
    assert speed == pytest.approx(2 * 260 / 50)
    assert used == [2, 4]
    monkeypatch.undo()
    assert memory.threads() == before


def test_little_data_are_tried_whole(llama, monkeypatch) -> None:
    clocked(monkeypatch, 9.0, 0.1)
    sample = bases.tokens(3, [10] * 3)
    assert estimate.tokens_per_second(
        llama, TABLE, replace(PLAN, micro_batch_tokens=4096), sample
    ) == pytest.approx(30 / 0.1)


def test_each_process_holds_the_base_and_its_own_passes(llama) -> None:
    one = estimate.memory_bytes(llama, PLAN)
    kept = 64 * memory.bytes_per_token(llama)
    adapters = 2 * memory.ADAPTER_COPIES * sum(4 * tensor.size for tensor in llama.zero.values())
    assert one == memory.PROCESS_BYTES + memory.weight_bytes(llama) + kept + adapters
    three = estimate.memory_bytes(llama, replace(PLAN, workers=3))
    assert three == 4 * (memory.PROCESS_BYTES + memory.weight_bytes(llama)) + 3 * (kept + adapters)
    assert estimate.memory_bytes(llama, replace(PLAN, micro_batch_tokens=128)) - one == pytest.approx(
        kept, rel=1e-6
    )
