"""What cannot be loaded or trained is refused in one sentence; fingerprints tell bases apart."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import peft
import pytest
import safetensors.torch
import torch
import transformers as hf
from transformers import AutoModelForCausalLM

from shepherd.algorithms import fedavg
from shepherd.core import Broadcast
from shepherd.data.dataset import TokenisedData, require_readable
from shepherd.data.tokens import Tokens
from shepherd.errors import BaseError, DataError
from shepherd.model import base as loading
from shepherd.model import lora, meta_shapes
from shepherd.model.attention import PACKED
from shepherd.model.digest import digest
from shepherd.settings import AdapterTable, ModelTable, TuningTable
from shepherd.training import score
from shepherd.training.tune import Visit
from tests.model import bases


def load(folder: Path | str, **model: object) -> loading.Base:
    device = str(model.pop("device", "cpu"))
    table = {"base": str(folder), "dtype": "float32", **model}
    return loading.load(ModelTable.model_validate(table), AdapterTable(rank=3), device=device)


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
    assert llama.shapes == lora.shapes(llama.targets, 3)
    plain = AutoModelForCausalLM.from_pretrained(llama_folder, dtype=torch.float32)
    ids = torch.arange(4, 12).unsqueeze(0)
    with torch.no_grad():
        torch.testing.assert_close(llama.model(ids).logits, plain(ids).logits)


def test_a_base_may_go_by_another_name(llama_folder) -> None:
    table = ModelTable(base=str(llama_folder), dtype="float32")
    assert loading.load(table, AdapterTable(), name="tiny", device="cpu").name == "tiny"


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
        base = load(bases.save(config, tmp_path / name))  # the proof compares them too, to 1e-3
        with torch.no_grad():
            hidden = base.model.base_model(ids.unsqueeze(0)).last_hidden_state[0]
            torch.testing.assert_close(loading.logits(base, hidden), base.model(ids.unsqueeze(0)).logits[0])


def test_the_attention_is_put_back_after_a_fault(llama) -> None:
    with pytest.raises(BaseError, match="outside a packed pass"), loading.attention_impl(llama, PACKED):
        llama.model(torch.ones(1, 3, dtype=torch.long))
    assert llama.model.config._attn_implementation == llama.attention


# --- what is refused


def test_a_folder_that_is_no_base_is_named(tmp_path) -> None:
    assert "nowhere has no config.json" in refused(tmp_path / "nowhere")
    assert f"{tmp_path} has no config.json" in refused(tmp_path)


def test_a_name_that_cannot_be_reached_is_named() -> None:
    assert "there is no folder nobody/nothing (searched next to" in refused("nobody/nothing")


def test_unreadable_weights_are_named(copy) -> None:
    weights = copy / "model.safetensors"
    whole = weights.read_bytes()
    for content in (b"", whole[: len(whole) // 2], b"no weights at all"):
        weights.write_bytes(content)
        assert f"base {copy} cannot be loaded" in refused(copy)
    weights.unlink()
    assert f"base folder {copy} has no model.safetensors" in refused(copy)


def test_a_configuration_that_transformers_trips_over_is_named(copy) -> None:
    keys = json.loads((copy / "config.json").read_text())
    for odd in ({"pad_token_id": 99999}, {"hidden_act": "nobodys"}, {"num_attention_heads": 0}):
        (copy / "config.json").write_text(json.dumps({**keys, **odd}))
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


@pytest.mark.parametrize(("key", "value"), [("tie_word_embeddings", "x"), ("hidden_size", "wide")])
def test_a_config_with_a_value_of_another_kind_is_named(copy, key, value) -> None:
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, key: value}))
    assert f"base {copy} " in refused(copy)


def test_a_base_without_a_tokenizer_is_refused(copy) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (copy / name).unlink()
    assert f"base {copy} has no readable tokenizer" in refused(copy)


@pytest.mark.parametrize("device", ["warp", "cuda:99", "cpu:x"])
def test_a_device_that_is_not_there_is_named(llama_folder, device) -> None:
    assert f'device "{device}" is not available here' in refused(llama_folder, device=device)


def test_an_architecture_that_looks_ahead_is_refused(tmp_path) -> None:
    assert "a token's states depend on the tokens after it" in refused(
        bases.save(hf.BertConfig(**bases._COMMON), tmp_path)
    )


UNPACKED: dict[str, tuple[Callable[[], hf.PretrainedConfig], str]] = {
    # a state runs on from one example into the next
    "mamba": (
        lambda: hf.MambaConfig(
            vocab_size=bases.VOCABULARY, hidden_size=32, num_hidden_layers=2, state_size=4
        ),
        "its examples get different states packed than alone",
    ),
    # its own attention with ALiBi
    "bloom": (
        lambda: hf.BloomConfig(vocab_size=bases.VOCABULARY, hidden_size=32, n_layer=2, n_head=4),
        "its attention is code of its own and cannot be replaced",
    ),
}


@pytest.mark.parametrize("name", UNPACKED)
def test_an_architecture_that_packing_would_get_wrong_runs_in_batches(name, tmp_path) -> None:
    config, why = UNPACKED[name]
    base = load(bases.save(config(), tmp_path))
    assert not base.packed
    assert why in base.proof.unpacked


# --- how much it reads


def longrope(kind: str = "longrope") -> hf.PretrainedConfig:
    rope = {
        "rope_type": kind,
        "rope_theta": 10000.0,
        "original_max_position_embeddings": 24,
        **({"short_factor": [1.0] * 4, "long_factor": [4.0] * 4} if kind == "longrope" else {"factor": 4.0}),
    }
    made = hf.Phi3Config if kind == "longrope" else hf.LlamaConfig
    return made(**bases._COMMON, rope_parameters=rope, original_max_position_embeddings=24)


@pytest.mark.parametrize("kind", ["longrope", "dynamic"])
def test_a_base_whose_position_scaling_switches_reads_up_to_there(kind, tmp_path) -> None:
    """Above that length one long example would change all others of the pass (law 1)."""
    assert load(bases.save(longrope(kind), tmp_path)).max_length == 24


def test_a_long_example_beside_it_changes_no_score_and_one_that_would_is_refused(tmp_path) -> None:
    base = load(bases.save(longrope(), tmp_path))
    short, long = bases.tokens(0, [9, 14]), bases.tokens(1, [24])
    alone = score.losses(base, [base.zero], short, micro_batch=999)
    beside = score.losses(base, [base.zero], Tokens.pooled([short, long]), micro_batch=999)
    np.testing.assert_allclose(beside[:, :2], alone, rtol=1e-6)
    prepared = TokenisedData(
        clients={"ann": bases.tokens(1, [25])},
        category_counts={},
        heldout=short,
        heldout_examples=[],
        summary={},
    )
    with pytest.raises(DataError, match=r"ann: .* 25 tokens and .* at most 24.*; set data\.max_tokens = 24"):
        require_readable(prepared, base)


def test_tuning_and_scoring_refuse_it_too_whoever_calls_them(tmp_path) -> None:
    """The update of a client beside another's example that the scaling would switch at."""
    base = load(bases.save(longrope(), tmp_path))
    visits = [
        Visit(client=name, data=bases.tokens(1, [size]), batches=[np.arange(1)])
        for name, size in (("ann", 9), ("bob", 25))
    ]
    sent = Broadcast(round=0, adapter=bases.random_adapter(base, 0), seed=0)
    said = r"client bob: an example has 25 tokens and .* that of others\); set data\.max_tokens = 24"
    with pytest.raises(DataError, match=said):
        bases.tuned(base, sent, fedavg.ALGORITHM, visits, TuningTable(), learning_rate=0.1)
    with pytest.raises(DataError, match="to score: an example has 25"):
        score.losses(base, [base.zero], bases.tokens(1, [25]), micro_batch=99)


@pytest.mark.parametrize(
    ("scaling", "max_length"),
    [
        ({"rope_type": "longrope"}, 24),
        ({"type": "longrope"}, 24),
        ({"rope_type": "dynamic"}, 24),
        ({"rope_type": "dynamic-yarn"}, 24),
        ({"rope_type": "yarn", "long_mscale": 1.2, "short_mscale": 1.1}, 24),  # PhiMoE's own scale
        ({"rope_type": "yarn", "factor": 4.0}, 64),
        ({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0}, 64),
        ({"rope_type": "linear", "factor": 2.0}, 64),
    ],
)
@pytest.mark.parametrize("nested", [False, True])
def test_which_scalings_go_by_the_longest_example_of_a_pass(llama, scaling, max_length, nested) -> None:
    rope = {**scaling, "original_max_position_embeddings": 24}
    config = SimpleNamespace(
        max_position_embeddings=64, rope_parameters={"full_attention": rope} if nested else rope
    )
    config.get_text_config = lambda: config
    base = dataclasses.replace(llama, model=SimpleNamespace(config=config))
    assert base.max_length == max_length
    assert bool(base.why_no_more) == (max_length == 24)


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


def test_a_base_that_carries_an_adapter_is_refused_by_name(copy, llama_folder) -> None:
    """Transformers would load the adapter with it, and no digest or fingerprint would tell."""
    network = AutoModelForCausalLM.from_pretrained(copy, dtype=torch.float32)
    adapter = peft.LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"], init_lora_weights=False)
    peft.get_peft_model(network, adapter).save_pretrained(copy)
    assert digest(llama_folder)
    model = ModelTable(base=str(copy), dtype="float32")
    for ask in (
        lambda: load(copy),
        lambda: loading.load_tokenizer(model),
        lambda: meta_shapes.size(model),
        lambda: meta_shapes.shapes(str(copy), AdapterTable()),
        lambda: digest(copy),
    ):
        with pytest.raises(BaseError, match=r"copy contains a PEFT adapter \(adapter_config\.json\)"):
            ask()


def test_so_is_a_hugging_face_id_that_names_another_base(monkeypatch) -> None:
    """Transformers would load the base that the adapter's configuration names, whatever it is."""
    found = "/cache/adapter_config.json"
    monkeypatch.setattr(loading, "find_adapter_config_file", lambda name, revision: found)
    assert "base owner/adapter contains a PEFT adapter" in refused("owner/adapter")
