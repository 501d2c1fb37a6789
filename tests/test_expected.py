"""What a run is expected to take: against the weights that are there, and a clock that the test turns."""

from __future__ import annotations

from typing import Any

import pytest

from shepherd import expected
from shepherd.model import memory
from shepherd.settings import TuningTable
from tests.model import bases


def table(**keys: Any) -> TuningTable:
    return TuningTable(**{"batch_size": 2, "cohort_size": 2, "workers": 1, "micro_batch_tokens": 64, **keys})


def test_seconds_are_the_rounds_tokens_by_the_speed_of_a_trial(llama, monkeypatch) -> None:
    times = iter([0.0, 1.0, 10.0, 10.5])  # the first trial warms up; the second takes half a second
    monkeypatch.setattr(expected, "perf_counter", lambda: next(times))
    sample = bases.tokens(60, [10] * 60)
    found = expected.expected(llama, table(), sample, round_tokens=5000)
    tried = 250  # 25 examples of 10 tokens: at most 256
    assert found.seconds_a_round == pytest.approx(5000 / (tried / 0.5))


def test_a_slow_base_is_tried_once(llama, monkeypatch) -> None:
    times = iter([0.0, 50.0])
    monkeypatch.setattr(expected, "perf_counter", lambda: next(times))
    assert expected.tokens_per_second(llama, table(), bases.tokens(3, [10] * 3)) == pytest.approx(30 / 50)


def test_each_process_holds_the_base_and_its_own_passes(llama) -> None:
    one = expected.memory_bytes(llama, table())
    kept = 64 * memory.bytes_per_token(llama)
    adapters = 2 * memory.COPIES * sum(4 * tensor.size for tensor in llama.zero.values())
    assert one == memory.PROCESS + memory.weight_bytes(llama) + kept + adapters
    three = expected.memory_bytes(llama, table(workers=3))
    assert three == 4 * (memory.PROCESS + memory.weight_bytes(llama)) + 3 * (kept + adapters)
    assert expected.memory_bytes(llama, table(micro_batch_tokens=128)) - one == pytest.approx(kept, rel=1e-6)
