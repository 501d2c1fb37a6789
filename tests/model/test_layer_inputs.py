"""Inputs of the adapted modules against those that transformers' own layers are given."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from shepherd.model import layer_inputs
from shepherd.model.base import Proof
from tests.model import bases

ROWS = np.array([[5, 9, 7, 9], [8, 8, 30, 4], [60, 4, 5, 6]], np.int64)


def test_modules_that_read_one_tensor_are_a_group(llama: Any) -> None:
    kinds = [
        [target.module.rpartition(".")[2] for target in group]
        for group in layer_inputs.groups(llama, llama.zero)
    ]
    assert kinds == 2 * [["q_proj", "k_proj", "v_proj"], ["o_proj"], ["gate_proj", "up_proj"], ["down_proj"]]


def test_a_first_layer_reads_the_normed_embeddings(llama: Any) -> None:
    first = layer_inputs.groups(llama, llama.zero)[0][0]
    found = layer_inputs.inputs(llama, llama.zero, ROWS, first)
    x = llama.model.get_input_embeddings().weight.double()[torch.from_numpy(ROWS)]
    norm = llama.model.model.layers[0].input_layernorm
    expected = x / (x.square().mean(-1, keepdim=True) + norm.variance_epsilon).sqrt() * norm.weight.double()
    np.testing.assert_allclose(found, expected.detach().numpy(), rtol=1e-4, atol=1e-5)


def test_a_later_layer_reads_what_the_adapter_changes(llama: Any) -> None:
    later = layer_inputs.groups(llama, llama.zero)[4][0]
    adapter = bases.random_adapter(llama, 0)
    plain, tuned = (layer_inputs.inputs(llama, each, ROWS, later) for each in (llama.zero, adapter))
    with torch.no_grad():  # without a plan, the base alone runs
        states = llama.model(torch.from_numpy(ROWS), output_hidden_states=True).hidden_states[1]
        expected = llama.model.model.layers[1].input_layernorm(states).numpy()
    np.testing.assert_allclose(plain, expected, rtol=1e-4, atol=1e-5)
    assert np.abs(plain - tuned).max() > 1e-2


def test_rows_do_not_depend_on_how_they_are_cut(llama: Any, monkeypatch: Any) -> None:
    later = layer_inputs.groups(llama, llama.zero)[4][0]
    whole = layer_inputs.inputs(llama, llama.zero, ROWS, later)
    monkeypatch.setattr(layer_inputs, "PASS_TOKENS", 4)
    np.testing.assert_allclose(
        layer_inputs.inputs(llama, llama.zero, ROWS, later), whole, rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("length", [0, 1, 5])
@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_tokens_after_a_prefix_are_read_as_in_rows_of_their_own(
    kind: str, length: int, tmp_path: Path
) -> None:
    base = bases.load(bases.save(bases.CONFIGS[kind], tmp_path))
    prefixes = np.random.default_rng(0).integers(4, bases.VOCABULARY, (2, length))
    tokens = np.array([9, 4, 30])
    rows = np.array([[*prefix, token] for prefix in prefixes for token in tokens], np.int64)
    adapter = bases.random_adapter(base, 0)
    (first, *_), *_, (later, *_) = layer_inputs.groups(base, adapter)
    for target in (first, later):
        whole = layer_inputs.inputs(base, adapter, rows, target)[:, -1].reshape(2, 3, -1)
        for packed in (base, replace(base, proof=Proof(unpacked="a test"))):
            found = layer_inputs.continued(packed, adapter, prefixes, tokens, target)
            np.testing.assert_allclose(found, whole, rtol=1e-4, atol=1e-5)


def test_no_hook_is_left(llama: Any) -> None:
    layer_inputs.groups(llama, llama.zero)
    assert not any(module._forward_pre_hooks for module in llama.model.modules())
