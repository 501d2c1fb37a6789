"""Bases that cannot run packed: batches of one client, against PEFT, and rows of two clients never meet."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import transformers as hf

from benchmarks import tiny
from shepherd.algorithms import fedavg
from shepherd.core import Broadcast
from shepherd.machine import memory
from shepherd.model import generate
from shepherd.model.base import Base, Proof
from shepherd.settings import TuningTable
from shepherd.training import score, tune
from shepherd.training.tune import TuningResult, Visit
from tests.model import bases
from tests.model.in_peft import in_peft, peft_loss

CONFIGS = {
    # attention with ALiBi of its own
    "bloom": lambda: hf.BloomConfig(vocab_size=bases.VOCABULARY, hidden_size=32, n_layer=2, n_head=4),
    # short convolutions beside attention
    "lfm2": lambda: tiny.config(
        "lfm2", vocab_size=bases.VOCABULARY, layer_types=["conv", "full_attention"], full_attn_idxs=None
    ),
}
LENGTHS = [9, 4, 13, 7, 30]
PLAIN = fedavg.build(fedavg.Config())


@pytest.fixture(scope="module", params=list(CONFIGS))
def folder(request, tmp_path_factory) -> Path:
    return bases.save(CONFIGS[request.param](), tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="module")
def base(folder) -> Base:
    loaded = bases.load(folder)
    assert not loaded.packed
    return loaded


def visit(name: str, seed: int) -> Visit:
    data = bases.tokens(seed, LENGTHS)
    return Visit(client=name, data=data, batches=[np.array([0, 1, 4]), np.array([3, 2])], seed=seed)


def tuned(base: Base, *visits: Visit, micro_batch: int = 32) -> list[TuningResult]:
    broadcast = Broadcast(round=0, adapter=bases.random_adapter(base, 1), seed=0)
    how = {"learning_rate": 0.01, "micro_batch_tokens": micro_batch}
    return bases.tuned(base, broadcast, PLAIN, list(visits), TuningTable(), **how)


def test_scores_are_pefts(base, tmp_path) -> None:
    adapters, data = [bases.random_adapter(base, seed) for seed in (1, 2)], bases.tokens(3, LENGTHS)
    counts = tune.predictions(data)
    found = score.losses(base, adapters, data, micro_batch=40)
    for k, adapter in enumerate(adapters):
        model = in_peft(base, adapter, tmp_path / str(k))
        expected = [peft_loss(model, data.take([i])).item() * counts[i] for i in range(len(data))]
        np.testing.assert_allclose(found[k], expected, rtol=1e-5)


def test_a_step_is_pefts(base, tmp_path) -> None:
    one = visit("ann", 1)
    (found,) = tuned(base, Visit(client="ann", data=one.data, batches=one.batches[:1]))
    model = in_peft(base, bases.random_adapter(base, 1), tmp_path)
    loss = peft_loss(model, one.data.take(one.batches[0]))
    assert found.report.loss == pytest.approx(loss.item(), rel=1e-5)
    loss.backward()
    for name, parameter in model.named_parameters():
        if "lora_" in name and parameter.grad is not None:
            moved = found.delta[name.replace(".default", "")]
            big = parameter.grad.abs().numpy() > 1e-4  # AdamW's first step is the sign of the gradient
            np.testing.assert_array_equal(np.sign(moved[big]), -np.sign(parameter.grad.numpy()[big]))


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_what_else_is_tuned_changes_nothing_but_rounding_and_its_order_no_bit(folder, dropout) -> None:
    base = bases.load(folder, dropout=dropout)
    ann, bob = visit("ann", 1), visit("bob", 2)
    together = tuned(base, ann, bob)
    for one, seen in zip((ann, bob), together, strict=True):
        (alone,) = tuned(base, one)
        for name, tensor in alone.delta.items():  # AdamW makes much of little gradients
            np.testing.assert_allclose(seen.delta[name], tensor, atol=2e-6)
    assert [one.delta for one in tuned(base, bob, ann)] == [together[1].delta, together[0].delta]
    assert together[0].delta != together[1].delta


def test_small_passes_change_only_rounding(base) -> None:
    (whole,), (cut,) = (tuned(base, visit("ann", 1), micro_batch=size) for size in (999, 1))
    assert cut.report.loss == pytest.approx(whole.report.loss, rel=1e-5)
    assert cut.report.tokens == whole.report.tokens == sum(LENGTHS)


def test_little_is_padded_and_a_pass_is_one_clients() -> None:
    visits = [visit("ann", 1), visit("bob", 2)]
    rows = tune.passes(visits, 0, 40, packed=False)
    assert [[(row.client, row.examples.tolist()) for row in of_pass] for of_pass in rows] == [
        [(0, [4])],
        [(0, [0])],
        [(0, [1])],
        [(1, [4])],
        [(1, [0])],
        [(1, [1])],
    ]


def test_several_adapters_answer_as_each_alone(base) -> None:
    adapters = [bases.random_adapter(base, 1, size=0.5), None, bases.random_adapter(base, 2, size=0.5)]
    prompts = [[5, 9, 22], [7], [30, 31, 32, 33, 34, 35, 36], [8, 8], [50, 4, 17]]
    together = generate.generate(base, adapters, prompts, max_new_tokens=8, stop=[2])
    for k, adapter in enumerate(adapters):
        for i, prompt in enumerate(prompts):
            alone = generate.generate(base, [adapter], [prompt], max_new_tokens=8, stop=[2])
            assert together[k][i] == alone[0][0]
    assert together[0] != together[1] != together[2]


def test_where_padding_changes_an_answer_only_prompts_of_one_length_share_a_batch(llama, monkeypatch) -> None:
    prompts = [[1] * 3, [1] * 2, [1] * 3, [1] * 2, [1] * 3]

    def batches(most: int, **proof: bool) -> list[list[int]]:
        monkeypatch.setattr(generate, "MAX_BATCH_SEQUENCES", most)
        base = replace(llama, proof=Proof(**proof))
        return list(generate._batches(base, prompts, [8] * len(prompts), 1))

    assert batches(2, pads=False) == [[1, 3], [0, 2], [4]]
    assert batches(2) == [[1, 3], [0, 2], [4]]
    assert batches(4) == [[1, 3, 0, 2], [4]]
    assert batches(4, pads=False) == [[1, 3], [0, 2, 4]]
    assert batches(4, batches=False) == [[1], [3], [0], [2], [4]]


def test_the_memory_of_a_token_is_measured(base) -> None:
    assert memory.bytes_per_token(base) > 1000
