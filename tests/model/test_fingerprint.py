"""One fingerprint a base: not of its dtype, its folder or its file format, but of its values and settings."""

from __future__ import annotations

import copy
import hashlib
import json
import shutil
import struct
import tracemalloc
from pathlib import Path

import pytest
import safetensors.torch
import torch
from transformers import AutoModelForCausalLM

from shepherd.errors import BaseError
from shepherd.model import base as loading
from shepherd.model import digest, fingerprint
from shepherd.settings import AdapterTable, ModelTable
from tests.model import bases


def load(folder: Path, dtype: str = "float32") -> loading.Base:
    return loading.load(ModelTable(base=str(folder), dtype=dtype), AdapterTable(rank=2), device="cpu")


@pytest.fixture
def folder(llama_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(llama_folder, tmp_path / "moved"))


def change(folder: Path, name: str, by: float) -> None:
    tensors = safetensors.torch.load_file(folder / "model.safetensors")
    tensors[name] += by
    safetensors.torch.save_file(tensors, folder / "model.safetensors", {"format": "pt"})


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_it_is_the_same_in_whatever_dtype_and_wherever_the_folder_lies(llama, folder, dtype) -> None:
    assert load(folder, dtype).fingerprint == llama.fingerprint


def test_shards_of_the_same_base_have_the_same(llama, llama_folder, tmp_path) -> None:
    network = AutoModelForCausalLM.from_pretrained(llama_folder, dtype=torch.float32)
    network.save_pretrained(tmp_path / "shards", max_shard_size="40KB")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 1
    assert fingerprint.of_folder(tmp_path / "shards") == llama.fingerprint


@pytest.mark.parametrize("kind", ["llama", "gemma2", "gpt2", "gpt_neox"])
def test_a_head_tied_to_the_embedding_counts_once_also_where_it_is_stored(kind, tmp_path) -> None:
    config = copy.deepcopy(bases.CONFIGS[kind])
    config.tie_word_embeddings = True
    whole = bases.save(config, tmp_path / "safetensors")
    network = AutoModelForCausalLM.from_pretrained(whole, dtype=torch.float32)
    twice = tmp_path / "twice"
    network.config.save_pretrained(twice)
    copies = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    safetensors.torch.save_file(copies, twice / "model.safetensors", {"format": "pt"})
    stored = safetensors.torch.load_file(whole / "model.safetensors")
    assert len(network.state_dict()) == len(stored) + 1
    assert fingerprint.of_folder(twice) == fingerprint.of_folder(whole)


def test_a_configuration_that_saving_completes_is_the_same_base(llama, folder) -> None:
    path = folder / "config.json"
    whole = json.loads(path.read_text())
    gone = ("initializer_range", "attention_bias", "mlp_bias", "head_dim", "rope_parameters", "architectures")
    short = {key: value for key, value in whole.items() if key not in gone}
    for written in (short, {**short, "rope_theta": 10000.0}, {**whole, "rope_theta": 10000.0}):
        path.write_text(json.dumps({**written, "attention_dropout": 0.5}))
        assert fingerprint.of_folder(folder) == llama.fingerprint
    for other in ({"rope_theta": 20000.0}, {"head_dim": 16}, {"num_attention_heads": 2}):
        path.write_text(json.dumps({**short, **other}))
        assert fingerprint.of_folder(folder) != llama.fingerprint


def test_a_configuration_of_code_that_comes_with_the_base_counts_as_it_is_written(llama, folder) -> None:
    path = folder / "config.json"
    config = {**json.loads(path.read_text()), "model_type": "ours", "use_cache": True}
    path.write_text(json.dumps(config))
    first = fingerprint.of_folder(folder)
    path.write_text(json.dumps({**config, "use_cache": False}))
    assert fingerprint.of_folder(folder) == first
    path.write_text(json.dumps({**config, "rms_norm_eps": 0.5}))
    assert fingerprint.of_folder(folder) != first


def test_saved_as_bfloat16_it_is_the_same_base(llama_folder, tmp_path) -> None:
    network = AutoModelForCausalLM.from_pretrained(llama_folder, dtype=torch.float32)
    network.to(torch.bfloat16).save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["dtype"] == "bfloat16"
    assert fingerprint.of_folder(tmp_path) == fingerprint.of_folder(llama_folder)


def test_a_base_tuned_in_one_linear_module_is_another(llama, folder) -> None:
    change(folder, "model.layers.1.mlp.down_proj.weight", 0.01)
    assert fingerprint.of_folder(folder) != llama.fingerprint


def test_settings_that_change_logits_count_and_others_do_not(llama, folder) -> None:
    path = folder / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, "_name_or_path": "a/b", "dtype": "float16", "use_cache": False}))
    assert fingerprint.of_folder(folder) == llama.fingerprint
    path.write_text(json.dumps({**config, "rms_norm_eps": 0.5}))
    assert fingerprint.of_folder(folder) != llama.fingerprint


def test_a_hugging_face_id_has_that_of_its_download(llama, llama_folder, monkeypatch) -> None:
    downloads = {("org/name", "v1"): str(llama_folder)}
    monkeypatch.setattr(digest, "snapshot", lambda *asked: downloads[asked])
    assert fingerprint.of_base("org/name", "v1", llama.model) == llama.fingerprint


def test_little_of_a_large_base_is_read(llama_folder, tmp_path) -> None:
    size = 4 << 30  # bytes, of which the disk holds none
    header = {"w": {"dtype": "F32", "shape": [size // 4], "data_offsets": [0, size]}}
    text = json.dumps(header).encode()
    with open(tmp_path / "model.safetensors", "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + size)
    shutil.copy(llama_folder / "config.json", tmp_path)
    tracemalloc.start()
    try:
        assert len(fingerprint.of_folder(tmp_path)) == 16
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def test_a_cut_or_missing_file_is_named(folder) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(BaseError, match="moved cannot be read"):
        fingerprint.of_folder(folder)
    weights.unlink()
    with pytest.raises(BaseError, match=r"has no model\.safetensors"):
        fingerprint.of_folder(folder)


@pytest.mark.parametrize("kind", ["llama", "qwen2", "gpt2"])  # the second and third have biases
def test_what_was_recorded_in_the_old_way_is_still_known(kind, tmp_path) -> None:
    folder = bases.save(bases.CONFIGS[kind], tmp_path / kind)
    network = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    old = hashlib.sha256()
    for name, tensor in sorted(network.named_parameters()):
        if tensor.ndim != 2 or "embed" in name:
            flat = tensor.detach().reshape(-1)
            values = flat[:: max(1, len(flat) // 64)].to(torch.bfloat16).float().numpy()
            old.update(f"{name} {tuple(tensor.shape)} ".encode() + values.tobytes())
    base = load(folder)
    assert fingerprint.is_of(old.hexdigest()[:16], base)
    assert fingerprint.is_of(base.fingerprint, base)
    assert not fingerprint.is_of("0" * 16, base)
