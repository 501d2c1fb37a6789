"""What is written as GGUF computes as base and adapter do, for readers that this project did not write."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGUFReader
from gguf.quants import dequantize
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.modeling_gguf_pytorch_utils import TENSOR_PROCESSORS, TensorProcessor

from benchmarks import gguf_bases
from shepherd.core import Adapter
from shepherd.data.template import Template
from shepherd.errors import AdapterError, BaseError, FolderError
from shepherd.model import gguf_architectures, gguf_export, gguf_file, lora, merging
from shepherd.model.base import Base
from shepherd.model.exporting import Trained
from tests.model import bases
from tests.model.in_peft import in_peft

IDS = torch.tensor([[1, 40, 77, 300, 5, 9, 260, 301, 41, 42, 200, 13]])
KINDS = list(gguf_bases.CONFIGS)
# the reader takes no scaling of positions, scale of Gemma's queries or size of GPT-2's table from a file
OWN_CONFIG = {"gemma2", "gemma3_text", "gpt2", "llama, llama3 positions"}
MIXED = {"rank": 3, "alpha": 6, "rank_stabilised": True}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Bases on disk, each made once."""
    made: dict[str, Path] = {}

    def folder(kind: str) -> Path:
        if kind not in made:
            made[kind] = gguf_bases.save(gguf_bases.CONFIGS[kind], tmp_path_factory.mktemp("base"))
        return made[kind]

    return folder


def trained(base: Base, adapter: Adapter | None = None, template: str = "plain") -> Trained:
    stop = [base.tokenizer.eos_token_id]
    return Trained(
        base=base,
        adapter=adapter if adapter is not None else bases.random_adapter(base, 1),
        stop=stop,
        template=Template(template),  # type: ignore[arg-type]
    )


def of_two_ranks(base: Base) -> Adapter:
    """An adapter that has more ranks at some targets, as side ranks and the clients' own are."""
    adapter = bases.random_adapter(base, 3)
    more = {t.name_a: base.adapter.rank + 2 * (n % 3 == 0) for n, t in enumerate(base.targets)}
    wide = lora.at_ranks(base.targets, adapter, more)
    rng = np.random.default_rng(4)
    return Adapter({name: values + rng.normal(0, 0.05, values.shape) for name, values in wide.items()})


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(input_ids=IDS, use_cache=False).logits


def close(one: torch.Tensor, other: torch.Tensor, by: float = 1e-5) -> None:
    assert float((one - other).norm() / other.norm()) < by


@pytest.mark.parametrize("kind", KINDS)
def test_a_merged_model_has_the_logits_of_base_and_adapter_in_transformers_own_reader(
    kind: str, folders: Any, tmp_path: Path
) -> None:
    base = bases.load(folders(kind), **MIXED)
    adapter = of_two_ranks(base)
    gguf_export.write_model(tmp_path / "model.gguf", trained(base, adapter), "float32")
    known = {"config": AutoConfig.from_pretrained(base.name)} if kind in OWN_CONFIG else {}
    read = AutoModelForCausalLM.from_pretrained(
        tmp_path, gguf_file="model.gguf", dtype=torch.float32, **known
    )
    assert type(read).__name__ == type(base.model).__name__ or kind == "mistral"
    expected = logits(in_peft(base, adapter, tmp_path / "peft"))
    close(logits(read), expected)
    assert float((expected - logits(AutoModelForCausalLM.from_pretrained(base.name))).norm()) > 1


def changes(file: Path) -> dict[str, np.ndarray]:
    """The change of each matrix as llama.cpp makes it of an adapter file: alpha / r B A."""
    read = GGUFReader(file)
    alpha = read.fields["adapter.lora.alpha"].contents()
    tensors = {each.name: dequantize(each.data, each.tensor_type) for each in read.tensors}
    found = {}
    for name in tensors:
        if name.endswith(".lora_a"):
            a, b = tensors[name], tensors[f"{name.removesuffix('a')}b"]
            found[name.removesuffix(".lora_a")] = (alpha / len(a)) * b.astype(np.float64) @ a
    return found


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("stabilised", [False, True])
def test_an_adapter_changes_each_matrix_by_the_dense_product(
    kind: str, stabilised: bool, folders: Any, tmp_path: Path
) -> None:
    base = bases.load(folders(kind), rank=4, alpha=6, rank_stabilised=stabilised)
    adapter = of_two_ranks(base)
    gguf_export.write_adapter(tmp_path / "adapter.gguf", trained(base, adapter), "float32")
    config = base.model.config
    about = {"num_attention_heads": 4, "num_key_value_heads": getattr(config, "num_key_value_heads", 4)}
    how = gguf_architectures.VERIFIED[config.model_type].name
    undo = TENSOR_PROCESSORS.get(how, TensorProcessor)(config=about) if how == "llama" else TensorProcessor()
    found = {
        name: undo.process(change, name).weights
        for name, change in changes(tmp_path / "adapter.gguf").items()
    }
    assert len(found) == len(base.targets)
    scale = 6 / (2.0 if stabilised else 4.0)
    names = gguf_file.names(how, config.num_hidden_layers, [f"{t.module}.weight" for t in base.targets])
    for target in base.targets:
        dense = scale * adapter[target.name_b].astype(np.float64) @ adapter[target.name_a]
        np.testing.assert_allclose(found[names[f"{target.module}.weight"]], dense, atol=1e-6)


def test_the_rows_of_q_are_in_another_order_in_llama_and_not_in_qwen(folders: Any, tmp_path: Path) -> None:
    for kind, same in (("llama", False), ("mistral", False), ("qwen2", True)):
        base = bases.load(folders(kind))
        adapter = bases.random_adapter(base, 1)
        gguf_export.write_adapter(tmp_path / f"{kind}.gguf", trained(base, adapter), "float32")
        read = {each.name: each.data for each in GGUFReader(tmp_path / f"{kind}.gguf").tensors}
        for leaf, moved in (("q", not same), ("k", not same), ("v", False)):
            (target,) = (t for t in base.targets if t.module == f"model.layers.0.self_attn.{leaf}_proj")
            stored = read[f"blk.0.attn_{leaf}.weight.lora_b"]
            assert np.array_equal(stored, adapter[target.name_b]) == (not moved), (kind, leaf)


@settings(max_examples=30)
@given(heads=st.integers(1, 5), half=st.integers(1, 6))
def test_the_pairs_of_a_rotation_become_neighbours(heads: int, half: int) -> None:
    config = type("C", (), {"num_attention_heads": heads, "num_key_value_heads": heads, "head_dim": 2 * half})
    rows = gguf_architectures.VERIFIED["llama"].rows("model.layers.0.self_attn.q_proj.weight", config)
    assert rows is not None
    for head in range(heads):
        for i in range(half):
            at = 2 * half * head
            assert (rows[at + 2 * i], rows[at + 2 * i + 1]) == (at + i, at + half + i)


@pytest.mark.parametrize(("number", "by"), [("bfloat16", 0.02), ("float16", 0.002), ("q8_0", 0.02)])
def test_matrices_are_stored_as_asked_for(number: Any, by: float, folders: Any, tmp_path: Path) -> None:
    base = bases.load(folders("llama"))
    adapter = bases.random_adapter(base, 1)
    gguf_export.write_model(tmp_path / "model.gguf", trained(base, adapter), number)
    kinds = {each.name: each.tensor_type.name for each in GGUFReader(tmp_path / "model.gguf").tensors}
    assert set(kinds.values()) == {"F32", gguf_file.KINDS[number]}
    assert kinds["blk.0.attn_norm.weight"] == "F32"
    read = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="model.gguf", dtype=torch.float32)
    close(logits(read), logits(in_peft(base, adapter, tmp_path / "peft")), by)


def test_a_tied_head_is_written_once(folders: Any, tmp_path: Path) -> None:
    for kind, there in (("llama", True), ("llama, tied", False)):
        gguf_export.write_model(tmp_path / "m.gguf", trained(bases.load(folders(kind))), "float32")
        assert ("output.weight" in {each.name for each in GGUFReader(tmp_path / "m.gguf").tensors}) == there


def test_the_file_says_what_it_is_made_of(folders: Any, tmp_path: Path) -> None:
    base = bases.load(folders("llama"))
    gguf_export.write_model(tmp_path / "model.gguf", trained(base, template="alpaca"), "float32")
    gguf_export.write_adapter(tmp_path / "adapter.gguf", trained(base), "float32")
    whole, alone = (
        {key: field.contents() for key, field in GGUFReader(tmp_path / name).fields.items()}
        for name in ("model.gguf", "adapter.gguf")
    )
    assert (whole["general.type"], alone["general.type"]) == ("model", "adapter")
    assert alone["general.architecture"] == "llama"
    assert (alone["adapter.type"], alone["adapter.lora.alpha"]) == ("lora", 6.0)
    assert (whole["llama.attention.head_count_kv"], whole["llama.rope.freq_base"]) == (2, 10_000.0)
    assert str(tmp_path) not in str(whole) + str(alone)
    assert "### Instruction:" in whole["tokenizer.chat_template"]


def test_a_tokenizer_is_read_back_from_the_file(folders: Any, tmp_path: Path) -> None:
    base = bases.load(folders("llama"))
    gguf_export.write_model(tmp_path / "model.gguf", trained(base), "float32")
    read = AutoTokenizer.from_pretrained(tmp_path, gguf_file="model.gguf")
    for text in (*gguf_bases.TEXTS[:3], "a</s> b<think>c"):
        assert read(text).input_ids == base.tokenizer(text).input_ids


@pytest.mark.parametrize(
    ("kind", "changed", "said"),
    [
        ("llama", {"attention_bias": True}, r"\(llama\) has biases"),
        ("mistral", {"sliding_window": 9}, r"has a sliding window of 9 tokens"),
        ("qwen2", {"layer_types": ["sliding_attention", "full_attention"]}, "layers with a sliding window"),
        (
            "llama",
            {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1.0}},
            'position scaling of type "yarn"',
        ),
        ("gemma2", {"query_pre_attn_scalar": 7}, "scales its queries by 7"),
        ("gemma2", {"layer_types": ["full_attention"] * 2}, "full_attention in layer 1"),
        ("gemma3_text", {"hidden_activation": "silu"}, "hidden_activation = 'silu'"),
        ("gpt2", {"activation_function": "relu"}, "activation_function = 'relu'"),
    ],
)
def test_what_llama_cpp_computes_otherwise_is_refused_by_name(
    kind: str, changed: dict[str, Any], said: str, folders: Any, tmp_path: Path, monkeypatch: Any
) -> None:
    base = bases.load(folders(kind))
    for key, value in changed.items():
        monkeypatch.setattr(base.model.config, key, value)
    for write in (gguf_export.write_model, gguf_export.write_adapter):
        with pytest.raises(BaseError, match=f"{said}.*export it --to merged"):
            write(tmp_path / "x.gguf", trained(base), "float32")
    assert not list(tmp_path.iterdir())


def test_an_architecture_that_is_not_verified_is_refused_by_name(tmp_path: Path) -> None:
    base = bases.load(bases.save(bases.CONFIGS["gpt_neox"], tmp_path / "base"))
    for write in (gguf_export.write_model, gguf_export.write_adapter):
        with pytest.raises(BaseError, match=r"of type gpt_neox.*verified are gemma2, .*qwen3\).*--to merged"):
            write(tmp_path / "x.gguf", trained(base), "float32")


def test_adapters_of_stacked_experts_are_refused_by_name(tmp_path: Path, monkeypatch: Any) -> None:
    folder = bases.save(bases.MIXTURES["mixtral"], tmp_path / "base")
    base = bases.load(folder, target_parameters=bases.STACKS)
    monkeypatch.setattr(base.model.config, "model_type", "llama")
    with pytest.raises(AdapterError, match=r"experts\.gate_up_proj is one of stacked experts.*--to merged"):
        gguf_export.write_adapter(tmp_path / "x.gguf", trained(base), "float32")


def test_a_quantised_base_has_an_adapter_and_no_merged_model(folders: Any, tmp_path: Path) -> None:
    base = bases.load(folders("llama"))
    quantised = replace(base, table=base.table.model_copy(update={"quantize": "4bit"}))
    with pytest.raises(BaseError, match=r'is quantised \(model.quantize = "4bit"\).*--to gguf-adapter'):
        gguf_export.write_model(tmp_path / "model.gguf", trained(quantised), "float32")
    gguf_export.write_adapter(tmp_path / "adapter.gguf", trained(quantised), "float32")
    assert len(changes(tmp_path / "adapter.gguf")) == len(base.targets)


def test_a_full_disk_is_one_sentence_and_leaves_no_part(
    folders: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("gguf.GGUFWriter.write_tensor_data", full)
    with pytest.raises(FolderError, match=r"cannot be written \(No space left on device\)"):
        gguf_export.write_adapter(tmp_path / "adapter.gguf", trained(bases.load(folders("llama"))), "float32")
    assert not list(tmp_path.iterdir())


def test_without_the_package_it_is_said_how_to_install_it(
    folders: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "gguf", None)
    with pytest.raises(BaseError, match=r"package gguf, which is not installed; run .*gguf\]"):
        gguf_export.write_model(tmp_path / "m.gguf", trained(bases.load(folders("llama"))), "float32")


@pytest.mark.parametrize("kind", KINDS)
def test_llama_cpp_computes_the_same(kind: str, folders: Any, tmp_path: Path) -> None:
    llama_cpp = pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")
    base = bases.load(folders(kind), **MIXED)
    adapter = of_two_ranks(base)
    gguf_export.write_model(tmp_path / "model.gguf", trained(base, adapter), "float32")
    gguf_export.write_model(tmp_path / "base.gguf", trained(base, base.zero), "float32")
    gguf_export.write_adapter(tmp_path / "adapter.gguf", trained(base, adapter), "float32")

    def there(file: str, lora_path: str | None = None) -> torch.Tensor:
        model = llama_cpp.Llama(
            str(tmp_path / file),
            lora_path=lora_path,
            **{"n_ctx": 64, "logits_all": True, "verbose": False, "n_threads": 1},
            **{"type_k": llama_cpp.GGML_TYPE_F32, "type_v": llama_cpp.GGML_TYPE_F32},  # else float16
        )
        model.eval(IDS[0].tolist())
        return torch.tensor(np.array(model.scores[: IDS.shape[1]]))[None]

    by = 1e-5 if hasattr(base.model.config, "hidden_act") else 2e-3  # its GELU is a table of float16
    expected = logits(in_peft(base, adapter, tmp_path / "peft"))
    close(there("model.gguf"), expected, by)
    close(there("base.gguf", str(tmp_path / "adapter.gguf")), expected, by)
    close(there("base.gguf"), logits(merging.merged(trained(base, base.zero), torch.float32)), by)
