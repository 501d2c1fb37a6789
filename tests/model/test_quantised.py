"""A base in 4 or 8 bits, by bitsandbytes on a processor: tuned as the weights it stands for, never merged."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from bitsandbytes.functional import dequantize_4bit
from bitsandbytes.nn import Linear4bit, Linear8bitLt
from torch import nn

from shepherd.algorithms import fedavg
from shepherd.core import Adapter, Broadcast
from shepherd.errors import BaseError
from shepherd.model import base as loading
from shepherd.model import merging
from shepherd.model.base import Base
from shepherd.settings import AdapterTable, ModelTable, TuningTable
from shepherd.training import score, tune
from tests.model import bases


@pytest.fixture(scope="module")
def quantised(llama_folder: Path) -> dict[str, Base]:
    return {
        bits: loading.load(
            ModelTable(base=str(llama_folder), dtype="float32", quantize=bits),
            AdapterTable(rank=3, alpha=6),
            device="cpu",
        )
        for bits in ("4bit", "8bit")
    }


def change(base: Base, adapter: Adapter) -> Adapter:
    data = [bases.tokens(seed, [9, 14, 11]) for seed in range(2)]
    visits = [tune.Visit(client=f"c{k}", data=own, batches=[np.arange(3)] * 3) for k, own in enumerate(data)]
    broadcast = Broadcast(round=0, adapter=adapter, seed=0)
    more = {"learning_rate": 1e-3}
    return bases.tuned(base, broadcast, fedavg.ALGORITHM, visits, TuningTable(), **more)[1].delta


def cosine(one: Adapter, other: Adapter) -> float:
    return sum(float(np.vdot(one[name], other[name])) for name in one) / (one.norm() * other.norm())


def test_it_is_proven_packed_and_adapted_at_every_linear_module(quantised, llama) -> None:
    for bits, kind in (("4bit", Linear4bit), ("8bit", Linear8bitLt)):
        base = quantised[bits]
        assert base.packed
        assert base.shapes == llama.shapes
        assert base.fingerprint == llama.fingerprint
        assert all(isinstance(base.model.get_submodule(t.module).base, kind) for t in base.targets)


def test_in_4_bits_it_is_tuned_as_the_weights_that_it_stands_for(quantised, llama_folder) -> None:
    base, adapter = quantised["4bit"], bases.random_adapter(quantised["4bit"], 1)
    plain = bases.load(llama_folder)
    for target in base.targets:
        own: nn.Linear = base.model.get_submodule(target.module).base
        weight = dequantize_4bit(own.weight.data, own.weight.quant_state)
        assert not torch.equal(weight, plain.model.get_submodule(target.module).base.weight)
        plain.model.get_submodule(target.module).base.weight.data.copy_(weight)
    assert cosine(change(base, adapter), change(plain, adapter)) > 0.999


def test_in_4_bits_an_evaluation_in_between_changes_nothing(quantised) -> None:
    base, adapter = quantised["4bit"], bases.random_adapter(quantised["4bit"], 1)
    before = change(base, adapter)
    score.losses(base, [adapter], bases.tokens(3, [9, 12]), micro_batch=100)
    after = change(base, adapter)
    assert all(np.array_equal(before[name], after[name]) for name in before)


def test_in_8_bits_it_moves_as_the_whole_base_does(quantised, llama) -> None:
    adapter = bases.random_adapter(llama, 1)
    assert cosine(change(quantised["8bit"], adapter), change(llama, adapter)) > 0.9


@pytest.mark.parametrize("bits", ["4bit", "8bit"])
def test_it_is_never_merged(quantised, bits) -> None:
    with pytest.raises(BaseError, match=rf'is quantised \(model\.quantize = "{bits}"\).*--to peft'):
        merging.require_whole(quantised[bits])


def test_without_bitsandbytes_the_extra_is_named(llama_folder, monkeypatch) -> None:
    monkeypatch.setattr(loading, "find_spec", lambda name: None)
    table = ModelTable(base=str(llama_folder), dtype="float32", quantize="4bit")
    with pytest.raises(BaseError, match=r"needs bitsandbytes; install the extra \[quantize\]"):
        loading.load(table, AdapterTable(), device="cpu")


def test_on_mps_it_is_refused() -> None:
    with pytest.raises(BaseError, match="needs CUDA or a processor"):
        loading._quantisation(ModelTable(base="b", quantize="4bit"), torch.device("mps"), torch.float32)
