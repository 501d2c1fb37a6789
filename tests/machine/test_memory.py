"""What fits: sizes follow the free memory, and a token's bytes follow the model."""

from __future__ import annotations

import pytest
import torch
import transformers as hf
from tests.model import bases

from shepherd.machine import memory

PLENTY = 10**15


def free(monkeypatch: pytest.MonkeyPatch, size: float) -> None:
    monkeypatch.setattr(memory, "free_bytes", lambda device: int(size))


def planned(base, **given) -> memory.Sizes:
    usual = {"clients": 100, "step_tokens": 1024.0, "all_tokens": 1.0, "micro_batch": 4096}
    return memory.sizes(base, **{**usual, **given})


def test_a_pass_is_cut_to_the_memory_that_is_free(llama, monkeypatch) -> None:
    token = memory.bytes_per_token(llama)
    free(monkeypatch, PLENTY)
    assert planned(llama).micro_batch_tokens == 4096
    free(monkeypatch, 1000 * token / memory.USABLE_SHARE + 1)
    assert planned(llama).micro_batch_tokens == 1000
    free(monkeypatch, 0)
    assert planned(llama) == memory.Sizes(workers=1, stack_size=1, micro_batch_tokens=1)


@pytest.mark.parametrize(("step_tokens", "size"), [(1024.0, 8), (2048.0, 4), (1e9, 1)])
def test_a_cohort_fills_two_passes_where_memory_allows(llama, monkeypatch, step_tokens, size) -> None:
    free(monkeypatch, PLENTY)
    assert planned(llama, clients=16, step_tokens=step_tokens).stack_size == size


def test_a_cohorts_adapters_must_fit_beside_a_pass(llama, monkeypatch) -> None:
    each = memory.ADAPTER_COPIES * memory.adapter_bytes(llama)
    room = 100 * memory.bytes_per_token(llama) + 3.5 * each
    free(monkeypatch, room / memory.USABLE_SHARE)
    assert planned(llama, clients=99, step_tokens=1.0, micro_batch=100).stack_size == 3


def test_ranks_beyond_the_runs_own_count(llama, monkeypatch) -> None:
    rank, small = llama.adapter.rank, memory.adapter_bytes(llama)
    assert memory.adapter_bytes(llama, rank) == 2 * small
    room = 100 * memory.bytes_per_token(llama) + 3.5 * memory.ADAPTER_COPIES * small
    free(monkeypatch, room / memory.USABLE_SHARE)
    given = {"clients": 99, "step_tokens": 1.0, "micro_batch": 100}
    assert planned(llama, **given, more_ranks=2 * rank).stack_size == 1


def test_long_runs_take_a_worker_a_thread_as_far_as_memory_and_clients_go(llama, monkeypatch) -> None:
    monkeypatch.setattr(memory, "threads", lambda: 8)
    free(monkeypatch, PLENTY)
    long = memory.MIN_PARALLEL_OPERATIONS / memory.parameters(llama)
    assert planned(llama, all_tokens=0.9 * long / 6).workers == 1
    assert planned(llama, all_tokens=long).workers == 8
    assert planned(llama, all_tokens=long, clients=3) == memory.Sizes(
        workers=3, stack_size=1, micro_batch_tokens=4096
    )
    assert planned(llama, all_tokens=long, workers=2).workers == 2
    assert planned(llama, all_tokens=long, stack_size=50).workers == 2  # there are but two groups
    one = memory.PROCESS_BYTES + memory.weight_bytes(llama) + 4096 * memory.bytes_per_token(llama)
    free(monkeypatch, 2.5 * one / memory.USABLE_SHARE)
    assert planned(llama, all_tokens=long).workers == 2


def test_workers_share_the_memory(llama, monkeypatch) -> None:
    part = memory.PROCESS_BYTES + memory.weight_bytes(llama) + 100 * memory.bytes_per_token(llama)
    free(monkeypatch, 2 * part / memory.USABLE_SHARE + 1)
    assert planned(llama, workers=2).micro_batch_tokens == 100


def test_bytes_a_token_grow_with_the_layers(tmp_path) -> None:
    def measured(layers: int) -> int:
        config = hf.LlamaConfig(**{**bases._COMMON, "num_hidden_layers": layers}, num_key_value_heads=2)
        return memory.bytes_per_token(bases.load(bases.save(config, tmp_path / str(layers))))

    one, two, four = measured(1), measured(2), measured(4)
    # at least each layer's inputs and outputs: 4 bytes of 32 numbers, several times over
    assert one > 10 * 4 * 32
    assert two > 1.5 * one
    assert four - two == pytest.approx(2 * (two - one), rel=0.1)


def test_no_row_is_longer_than_what_the_base_reads(tmp_path) -> None:
    def measured(reads: int) -> int:
        config = hf.GPT2Config(
            vocab_size=bases.VOCABULARY, n_embd=32, n_layer=2, n_head=4, n_positions=reads, eos_token_id=2
        )
        return memory.bytes_per_token(bases.load(bases.save(config, tmp_path / str(reads))))

    # a table of learned positions, which has no row beyond
    assert measured(64) == pytest.approx(measured(256), rel=0.1)


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
        memory.use_threads("auto")
        assert memory.threads() >= 1
    finally:
        torch.set_num_threads(before)


def test_free_memory_of_this_machine_is_a_sensible_number() -> None:
    assert 2**24 < memory.free_bytes(torch.device("cpu")) < 2**50


def test_a_pass_is_as_small_as_the_bases_size_allows(llama, monkeypatch) -> None:
    assert memory.micro_batch(llama) == 4096  # of a tiny base the fixed cost of a layer is most
    monkeypatch.setattr(memory, "parameters", lambda base: 107_000_000)
    llama_30_layers = llama.model.config.get_text_config()
    monkeypatch.setattr(llama_30_layers, "num_hidden_layers", 30)
    assert memory.micro_batch(llama) == 1024  # SmolLM2-135M
    monkeypatch.setattr(memory, "parameters", lambda base: 10**12)
    assert memory.micro_batch(llama) == 1024  # the shared prefix of a row alone


def test_the_peak_is_that_of_the_device_which_the_plan_counts(monkeypatch) -> None:
    asked = []
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: asked.append(device) or 3 * 2**30)
    gpu = torch.device("cuda:1")
    assert memory.peak_bytes(gpu) == 3 * 2**30 + memory.PROCESS_BYTES
    assert asked == [gpu]
    on_host = memory.peak_bytes(torch.device("cpu"))
    assert on_host is None or on_host >= memory.resident_bytes() // 2
    assert asked == [gpu]
