"""A base without weights: its sizes are those of the loaded one, and its first layers compute."""

from __future__ import annotations

import shutil

import pytest
import torch
import transformers as hf

from shepherd.errors import BaseError
from shepherd.machine import memory
from shepherd.model import outline
from shepherd.model.base import load
from shepherd.settings import AdapterTable, ModelTable
from tests.model import bases


@pytest.fixture
def headers(llama_folder, tmp_path):
    """The folder of the base without its weights."""
    folder = tmp_path / "headers"
    shutil.copytree(llama_folder, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    return folder


def of(folder, dtype="float32"):
    return outline.outline(ModelTable(base=str(folder), dtype=dtype), AdapterTable(rank=2), device="cpu")


def test_sizes_are_those_of_the_loaded_base_and_no_weight_is_read(llama, headers) -> None:
    found = of(headers)
    loaded = bases.load(llama.table.base, rank=2)
    assert {p.device for p in found.model.parameters()} == {torch.device("meta")}
    for size in (memory.parameters, memory.weight_bytes, memory.adapter_bytes):
        assert size(found) == size(loaded)
    assert found.shapes == loaded.shapes
    assert (found.device, found.dtype, found.max_length) == (loaded.device, loaded.dtype, loaded.max_length)


def test_weights_are_counted_in_the_type_that_they_will_have(headers) -> None:
    assert memory.weight_bytes(of(headers, "bfloat16")) * 2 == memory.weight_bytes(of(headers))


def test_the_first_layers_keep_what_those_of_the_whole_keep(llama, headers) -> None:
    """The bytes a token grow by the same for each layer, so that few layers tell of many."""
    found = of(headers)
    whole = outline.layers(found)
    assert whole >= 2
    kept = [memory.bytes_per_token(outline.cut(found, count)) for count in range(1, whole + 1)]
    assert kept[-1] == memory.bytes_per_token(bases.load(llama.table.base, rank=2))
    assert kept[0] < kept[1]


@pytest.mark.parametrize("bits", ["4bit", "8bit"])
def test_a_quantised_base_is_counted_as_it_will_be_loaded(llama, headers, bits) -> None:
    table = ModelTable(base=str(headers), dtype="float32", quantize=bits)
    found = outline.outline(table, AdapterTable(rank=2), device="cpu")
    loaded = load(table.model_copy(update={"base": llama.table.base}), AdapterTable(rank=2), device="cpu")
    assert {p.device for p in found.model.parameters()} == {torch.device("meta")}
    for each in (found, outline.cut(found, outline.layers(found))):
        assert memory.weight_bytes(each) == memory.weight_bytes(loaded)
        assert memory.parameters(each) == memory.parameters(loaded) == memory.parameters(of(headers))
        assert each.shapes == loaded.shapes
    assert memory.bytes_per_token(outline.cut(found, 2)) == memory.bytes_per_token(loaded)


SMALL = {"vocab_size": 61, "bos_token_id": 1, "eos_token_id": 2}
NOT_PACKED = {
    "bloom": hf.BloomConfig(**SMALL, hidden_size=32, n_layer=2, n_head=4),
    "mpt": hf.MptConfig(**SMALL, d_model=32, n_layers=2, n_heads=4, max_seq_len=128),
    "gptj": hf.GPTJConfig(**SMALL, n_embd=32, n_layer=2, n_head=4, rotary_dim=8, n_positions=64),
}


@pytest.mark.parametrize("kind", NOT_PACKED)
def test_a_base_with_attention_of_its_own_is_tried_in_batches_of_one_client(tmp_path, kind) -> None:
    folder = bases.save(NOT_PACKED[kind], tmp_path / kind)
    found, loaded = of(folder), bases.load(folder, rank=2)
    assert not found.packed
    assert found.max_length == {"bloom": None, "mpt": 128, "gptj": 64}[kind]
    assert found.proof.unpacked == loaded.proof.unpacked
    assert memory.bytes_per_token(outline.cut(found, 2)) == memory.bytes_per_token(loaded)


def test_kinds_of_layers_that_follow_from_their_number_are_left(tmp_path) -> None:
    config = hf.MambaConfig(**SMALL, hidden_size=32, num_hidden_layers=2, state_size=4)
    assert outline.layers(outline.cut(of(bases.save(config, tmp_path / "mamba")), 1)) == 1


def test_an_unknown_configuration_is_refused_by_name(headers) -> None:
    (headers / "config.json").write_text('{"model_type": "no_such_model"}')
    with pytest.raises(BaseError, match="headers"):
        of(headers)
