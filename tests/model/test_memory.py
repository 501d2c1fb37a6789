"""What fits: sizes follow the free memory, and a token's bytes follow the model."""

from __future__ import annotations

import pytest
import torch
import transformers as hf

from shepherd.model import memory
from tests.model import bases

PLENTY = 10**15


def adapter_bytes(base) -> int:
    return 4 * sum(rows * columns for rows, columns in base.shapes.values())


def free(monkeypatch: pytest.MonkeyPatch, size: float) -> None:
    monkeypatch.setattr(memory, "free_bytes", lambda device: int(size))


def test_a_pass_is_cut_to_the_memory_that_is_free(llama, monkeypatch) -> None:
    token = memory.bytes_per_token(llama)
    free(monkeypatch, PLENTY)
    assert memory.fitting_micro_batch(llama, 4096) == 4096
    free(monkeypatch, 1000 * token / memory.USABLE + 1)
    assert memory.fitting_micro_batch(llama, 4096) == 1000
    free(monkeypatch, 0)
    assert memory.fitting_micro_batch(llama, 4096) == 1


def test_a_cohort_fills_two_passes_where_memory_allows(llama, monkeypatch) -> None:
    free(monkeypatch, PLENTY)
    assert memory.cohort_size(llama, 4096, 1024.0) == 8
    assert memory.cohort_size(llama, 4096, 2048.0) == 4
    assert memory.cohort_size(llama, 4096, 1e9) == 1


def test_a_cohorts_adapters_must_fit_beside_a_pass(llama, monkeypatch) -> None:
    each = memory.COPIES * adapter_bytes(llama)
    room = 100 * memory.bytes_per_token(llama) + 3.5 * each
    free(monkeypatch, room / memory.USABLE)
    assert memory.cohort_size(llama, 100, 1.0) == 3
    free(monkeypatch, 0)
    assert memory.cohort_size(llama, 100, 1.0) == 1


def test_bytes_a_token_grow_with_the_layers(tmp_path) -> None:
    def measured(layers: int) -> int:
        config = hf.LlamaConfig(**{**bases._COMMON, "num_hidden_layers": layers}, num_key_value_heads=2)
        return memory.bytes_per_token(bases.load(bases.save(config, tmp_path / str(layers))))

    one, two, four = measured(1), measured(2), measured(4)
    # at least each layer's inputs and outputs: 4 bytes of 32 numbers, several times over
    assert one > 10 * 4 * 32
    assert two > 1.5 * one
    assert four - two == pytest.approx(2 * (two - one), rel=0.1)


def test_measuring_leaves_the_base_as_it_was(llama) -> None:
    first = memory.bytes_per_token(llama)
    assert memory.bytes_per_token(llama) == first
    assert llama.model.config._attn_implementation == llama.attention
    assert all(parameter.grad is None for parameter in llama.model.parameters())


def test_threads_are_set_and_told() -> None:
    before = memory.threads()
    try:
        memory.use_threads(3)
        assert memory.threads() == torch.get_num_threads() == 3
        memory.use_threads(None)
        assert memory.threads() >= 1
    finally:
        torch.set_num_threads(before)


def test_free_memory_of_this_machine_is_a_sensible_number() -> None:
    assert 2**24 < memory.free_bytes(torch.device("cpu")) < 2**50


def test_keeping_pages_tells_whether_it_could(monkeypatch) -> None:
    monkeypatch.setattr(memory.sys, "platform", "darwin")
    assert memory.keep_pages() is False
