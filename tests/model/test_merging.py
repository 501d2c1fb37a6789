"""A merged model is the base with its adapter, for whoever has transformers alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from shepherd.core import Adapter
from shepherd.model import merging
from shepherd.model.base import Base
from shepherd.model.exporters import merged
from shepherd.model.exporting import Trained
from tests.model import bases
from tests.model.in_peft import in_peft


def drawn(base: Base) -> Adapter:
    rng = np.random.default_rng(5)
    return Adapter({name: 0.3 * rng.normal(size=shape) for name, shape in base.shapes.items()})


def logits(model: Any) -> torch.Tensor:
    ids = torch.arange(24).reshape(2, 12) % model.config.vocab_size
    with torch.no_grad():
        return model.eval()(input_ids=ids, use_cache=False).logits


@pytest.mark.parametrize("kind", ["llama", "gpt2"])  # linear layers, and transposed ones
def test_it_gives_the_logits_of_base_and_adapter(kind: str, tmp_path: Path) -> None:
    base = bases.load(bases.save(bases.CONFIGS[kind], tmp_path / "base"))
    adapter = drawn(base)
    merged.build(merged.Config()).write(tmp_path / "out", Trained(base=base, adapter=adapter, stop=[1]))
    whole = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    plain = AutoModelForCausalLM.from_pretrained(base.name)
    expected = logits(in_peft(base, adapter, tmp_path / "peft"))
    torch.testing.assert_close(logits(whole), expected, atol=1e-4, rtol=1e-4)
    assert (logits(plain) - expected).abs().max() > 0.01
    assert not list((tmp_path / "out").glob("adapter*"))
    AutoTokenizer.from_pretrained(tmp_path / "out")


def test_the_weights_have_the_number_format_that_was_asked_for(llama: Base, tmp_path: Path) -> None:
    trained = Trained(base=llama, adapter=drawn(llama), stop=[1])
    merging.write(tmp_path / "out", trained, dtype="bfloat16", shard_bytes=20_000)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype="auto")
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert len(list((tmp_path / "out").glob("*.safetensors"))) > 1
