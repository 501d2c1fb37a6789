"""What cannot be loaded or trained packed is refused in one sentence; fingerprints tell bases apart."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch
import transformers as hf
from transformers import AutoModelForCausalLM

from shepherd.errors import BaseError
from shepherd.model import base as loading
from shepherd.model import layout, lora
from shepherd.model.attention import PACKED
from shepherd.settings import AdapterTable, ModelTable
from tests.model import bases


def load(folder: Path | str, **model: object) -> loading.Base:
    table = {"base": str(folder), "dtype": "float32", "device": "cpu", **model}
    return loading.load(ModelTable.model_validate(table), AdapterTable(rank=3))


@pytest.fixture
def copy(llama_folder, tmp_path) -> Path:
    return Path(shutil.copytree(llama_folder, tmp_path / "copy"))


def refused(folder: Path | str, **model: object) -> str:
    with pytest.raises(BaseError) as caught:
        load(folder, **model)
    message = str(caught.value)
    assert "\n" not in message
    return message


# --- what is loaded


def test_a_loaded_base_is_frozen_and_whole(llama, llama_folder) -> None:
    assert llama.name == str(llama_folder)
    assert (llama.dtype, llama.device.type) == (torch.float32, "cpu")
    assert not llama.model.training
    assert not any(parameter.requires_grad for parameter in llama.model.parameters())
    assert llama.shapes == lora.shapes(llama.sites, 3)
    plain = AutoModelForCausalLM.from_pretrained(llama_folder, dtype=torch.float32)
    ids = torch.arange(4, 12).unsqueeze(0)
    with torch.no_grad():
        torch.testing.assert_close(llama.model(ids).logits, plain(ids).logits)


def test_a_base_may_go_by_another_name(llama_folder) -> None:
    table = ModelTable(base=str(llama_folder), dtype="float32", device="cpu")
    assert loading.load(table, AdapterTable(), name="tiny").name == "tiny"


def test_the_fingerprint_knows_the_values_but_not_the_dtype(llama, llama_folder, tmp_path) -> None:
    assert load(llama_folder, dtype="bfloat16").fingerprint == llama.fingerprint
    other = bases.save(bases.CONFIGS["llama"], tmp_path, seed=1)
    assert load(other).fingerprint != llama.fingerprint


def test_the_head_gives_the_models_own_logits(tmp_path) -> None:
    common = {**bases._COMMON, "num_key_value_heads": 2}
    configs = {
        "gemma2": bases.CONFIGS["gemma2"],
        "granite": hf.GraniteConfig(**common, logits_scaling=3.0),
        "cohere": hf.CohereConfig(**common, logit_scale=0.25),
    }
    ids = torch.arange(4, 12)
    for name, config in configs.items():
        base = load(bases.save(config, tmp_path / name))  # `prove` compares them too, to 1e-3
        with torch.no_grad():
            hidden = base.model.base_model(ids.unsqueeze(0)).last_hidden_state[0]
            torch.testing.assert_close(loading.logits(base, hidden), base.model(ids.unsqueeze(0)).logits[0])


def test_the_attention_is_put_back_after_a_fault(llama) -> None:
    with pytest.raises(BaseError, match="outside a packed pass"), loading.attending(llama, PACKED):
        llama.model(torch.ones(1, 3, dtype=torch.long))
    assert llama.model.config._attn_implementation == llama.attention


# --- what is refused


def test_a_folder_that_is_no_base_is_named(tmp_path) -> None:
    assert "nowhere has no config.json" in refused(tmp_path / "nowhere")
    assert f"{tmp_path} has no config.json" in refused(tmp_path)


def test_a_name_that_cannot_be_reached_is_named() -> None:
    assert "base nobody/nothing cannot be loaded" in refused("nobody/nothing")


def test_unreadable_weights_are_named(copy) -> None:
    weights = copy / "model.safetensors"
    whole = weights.read_bytes()
    for content in (b"", whole[: len(whole) // 2], b"no weights at all"):
        weights.write_bytes(content)
        assert f"base {copy} cannot be loaded" in refused(copy)
    weights.unlink()
    assert f"base {copy} cannot be loaded" in refused(copy)


def test_a_base_with_a_missing_or_misshapen_tensor_is_not_filled_up_at_random(copy) -> None:
    weights = safetensors.torch.load_file(copy / "model.safetensors")
    gone = "model.layers.1.mlp.up_proj.weight"
    rest = {name: tensor for name, tensor in weights.items() if name != gone}
    safetensors.torch.save_file(rest, copy / "model.safetensors", {"format": "pt"})
    assert gone in refused(copy)
    rest[gone] = torch.zeros(2, 2)
    safetensors.torch.save_file(rest, copy / "model.safetensors", {"format": "pt"})
    assert gone in refused(copy)


def test_a_config_that_cannot_be_read_is_named(copy) -> None:
    (copy / "config.json").write_text("{")
    assert f"base {copy} cannot be loaded" in refused(copy)
    (copy / "config.json").write_text('{"model_type": "perceptron"}')
    assert f"base {copy} cannot be loaded" in refused(copy)


def test_a_base_without_a_tokenizer_is_refused(copy) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (copy / name).unlink()
    assert f"base {copy} has no readable tokenizer" in refused(copy)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is CUDA here")
@pytest.mark.parametrize("bits", ["8bit", "4bit"])
def test_quantising_without_cuda_is_refused(llama_folder, bits) -> None:
    assert f'model.quantize = "{bits}" needs CUDA' in refused(llama_folder, quantize=bits)


@pytest.mark.parametrize("device", ["warp", "cuda:99", "cpu:x"])
def test_a_device_that_is_not_there_is_named(llama_folder, device) -> None:
    assert f"model.device '{device}'" in refused(llama_folder, device=device)


MAMBA = {"hidden_size": 32, "num_hidden_layers": 2, "state_size": 4}
UNFIT: dict[str, Callable[[], hf.PretrainedConfig]] = {
    # a state runs on from one example into the next
    "mamba": lambda: hf.MambaConfig(vocab_size=bases.VOCABULARY, **MAMBA),
    # its own attention with ALiBi, which takes no other function
    "bloom": lambda: hf.BloomConfig(vocab_size=bases.VOCABULARY, hidden_size=32, n_layer=2, n_head=4),
    # looks ahead
    "bert": lambda: hf.BertConfig(**bases._COMMON),
    # attention sinks
    "gpt_oss": lambda: hf.GptOssConfig(
        **bases._COMMON, num_key_value_heads=2, head_dim=8, num_local_experts=2, num_experts_per_tok=1
    ),
}


@pytest.mark.parametrize("name", UNFIT)
def test_an_architecture_that_packing_would_get_wrong_is_refused(name, tmp_path) -> None:
    message = refused(bases.save(UNFIT[name](), tmp_path))
    assert "packed" in message or "does not take an attention function" in message


def test_proving_notices_logits_that_differ(llama, monkeypatch) -> None:
    honest = layout.positions
    monkeypatch.setattr(layout, "positions", lambda *line: honest(*line) + 7 * (honest(*line) > 2))
    with pytest.raises(BaseError, match="other logits when examples are packed"):
        loading.prove(llama)


# --- what is picked


def test_dtypes_and_devices_by_name(monkeypatch) -> None:
    cpu = loading.pick_device("cpu")
    named = [loading.pick_dtype(name, cpu) for name in ("float32", "bfloat16", "float16")]
    assert named == [torch.float32, torch.bfloat16, torch.float16]
    monkeypatch.setattr(loading, "_cpu_has_bfloat16", lambda: True)
    assert loading.pick_dtype("auto", cpu) == torch.bfloat16
    monkeypatch.setattr(loading, "_cpu_has_bfloat16", lambda: False)
    assert loading.pick_dtype("auto", cpu) == torch.float32
    assert loading.pick_dtype("auto", torch.device("mps")) == torch.float32
