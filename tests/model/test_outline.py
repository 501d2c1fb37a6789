"""A base without weights: its sizes are those of the loaded one, and its first layers compute."""

from __future__ import annotations

import shutil

import pytest
import torch

from shepherd.errors import BaseError
from shepherd.machine import memory
from shepherd.model import outline
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


def test_an_unknown_configuration_is_refused_by_name(headers) -> None:
    (headers / "config.json").write_text('{"model_type": "no_such_model"}')
    with pytest.raises(BaseError, match="headers"):
        of(headers)
