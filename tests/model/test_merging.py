"""A merged model is the base with its adapter, for whoever has transformers alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig

from shepherd.core import Adapter
from shepherd.data.template import Template
from shepherd.errors import AdapterError, BaseError
from shepherd.model import lora, merging
from shepherd.model.base import Base
from shepherd.model.exporters import merged
from shepherd.model.exporting import Trained
from tests.model import bases
from tests.model.in_peft import in_peft

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::RuntimeWarning")  # PEFT's, of targets
CONFIGS = {**bases.CONFIGS, **bases.MIXTURES}
TIED = LlamaConfig(**{**bases._COMMON, "tie_word_embeddings": True})


def drawn(base: Base) -> Adapter:
    rng = np.random.default_rng(5)
    return Adapter({name: 0.3 * rng.normal(size=shape) for name, shape in base.shapes.items()})


def trained(base: Base, adapter: Adapter | None = None) -> Trained:
    given = drawn(base) if adapter is None else adapter
    return Trained(base=base, adapter=given, stop=[1], template=Template("plain"))


def logits(model: Any) -> torch.Tensor:
    ids = torch.arange(24).reshape(2, 12) % model.config.vocab_size
    with torch.no_grad():
        return model.eval()(input_ids=ids, use_cache=False).logits


@pytest.mark.parametrize("kind", ["llama", "gpt2", "mixtral", "gpt_oss"])  # also transposed, and stacks
def test_it_gives_the_logits_of_base_and_adapter(kind: str, tmp_path: Path) -> None:
    stacks = bases.STACKS if kind in bases.MIXTURES else ()
    folder = bases.save(CONFIGS[kind], tmp_path / "base")
    base = bases.load(folder, target_parameters=stacks, rank_stabilised=True)
    adapter = drawn(base)
    merged.build(merged.Config()).write(tmp_path / "out", trained(base, adapter))
    whole = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    plain = AutoModelForCausalLM.from_pretrained(base.name)
    expected = logits(in_peft(base, adapter, tmp_path / "peft"))
    torch.testing.assert_close(logits(whole), expected, atol=1e-4, rtol=1e-4)
    assert (logits(plain) - expected).abs().max() > 0.01
    assert not list((tmp_path / "out").glob("adapter*"))
    AutoTokenizer.from_pretrained(tmp_path / "out")


def test_side_ranks_are_merged_too(llama: Base, tmp_path: Path) -> None:
    more = {target.name_a: 3 + 2 * (n % 2) for n, target in enumerate(llama.targets)}
    rng = np.random.default_rng(2)
    wide = lora.at_ranks(llama.targets, drawn(llama), more)
    adapter = Adapter({name: values + 0.1 * rng.normal(size=values.shape) for name, values in wide.items()})
    network = merging.merged(trained(llama, adapter), torch.float32)
    expected = logits(in_peft(llama, adapter, tmp_path / "peft"))
    torch.testing.assert_close(logits(network), expected, atol=1e-4, rtol=1e-4)


def test_tied_embeddings_stay_one_tensor(tmp_path: Path) -> None:
    base = bases.load(bases.save(TIED, tmp_path / "base"))
    merging.write(tmp_path / "out", trained(base), dtype="float32", shard_bytes=10**9)
    stored = safetensors.torch.load_file(tmp_path / "out" / "model.safetensors")
    assert "lm_head.weight" not in stored
    whole = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert whole.lm_head.weight.data_ptr() == whole.model.embed_tokens.weight.data_ptr()
    expected = logits(in_peft(base, drawn(base), tmp_path / "peft"))
    torch.testing.assert_close(logits(whole), expected, atol=1e-4, rtol=1e-4)


def test_the_weights_have_the_number_format_that_was_asked_for(llama: Base, tmp_path: Path) -> None:
    merging.write(tmp_path / "out", trained(llama), dtype="bfloat16", shard_bytes=20_000)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype="auto")
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert len(list((tmp_path / "out").glob("*.safetensors"))) > 1


def test_each_weight_is_merged_in_float64_and_rounded_once(llama: Base) -> None:
    adapter = drawn(llama)
    network = merging.merged(trained(llama, adapter), torch.bfloat16)
    plain = dict(AutoModelForCausalLM.from_pretrained(llama.name).named_parameters())
    for target in llama.targets:
        a, b = (torch.from_numpy(adapter[name].copy()).double() for name in (target.name_a, target.name_b))
        exact = plain[f"{target.module}.weight"].double() + 2.0 * (b @ a)
        assert torch.equal(network.get_submodule(target.module).weight, exact.to(torch.bfloat16))


def test_a_quantised_base_is_refused_by_name(llama: Base, monkeypatch: pytest.MonkeyPatch) -> None:
    quantised = replace(llama, table=llama.table.model_copy(update={"quantize": "8bit"}))
    with pytest.raises(BaseError, match=r'quantised \(model\.quantize = "8bit"\).*--to peft or --to gguf-ad'):
        merging.merged(trained(quantised), torch.float32)
    about = {"quant_method": "gptq"}
    monkeypatch.setattr(llama.model.config, "quantization_config", about, raising=False)
    with pytest.raises(BaseError, match=r"is quantised \(its config\.json, quantization_config: gptq\)"):
        merging.merged(trained(llama), torch.float32)


def test_a_weight_that_would_not_be_finite_is_named(llama: Base) -> None:
    huge = Adapter({name: 1e4 * values for name, values in drawn(llama).items()})
    with pytest.raises(AdapterError, match=r"q_proj\.weight would not be finite in float16; .*dtype=float32"):
        merging.merged(trained(llama, huge), torch.float16)


def test_a_weight_of_the_base_that_would_not_be_finite_is_named(
    llama: Base, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that no adapter changes: a norm of 1e5 is more than float16 can hold."""
    load = merging.bases.load_network

    def loaded(*args: Any, **options: Any) -> Any:
        network = load(*args, **options)
        network.model.norm.weight.data.fill_(1e5)
        return network

    monkeypatch.setattr(merging.bases, "load_network", loaded)
    with pytest.raises(AdapterError, match=r"cannot be written in float16: model\.norm\.weight would not"):
        merging.merged(trained(llama, drawn(llama)), torch.float16)
    merging.merged(trained(llama, drawn(llama)), torch.float32)
