"""Adapters on disk load strictly (law 4): whatever does not fit is an error that names it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import safetensors
import safetensors.torch
import torch

from shepherd.core import Adapter
from shepherd.errors import AdapterError, FolderError
from shepherd.model import files, fingerprint, lora
from shepherd.model.base import Base
from shepherd.settings import AdapterTable
from tests.model import bases

FIRST = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"


@pytest.fixture
def folder(llama, tmp_path) -> Path:
    files.write(tmp_path, bases.random_adapter(llama, 1), llama)
    return tmp_path


def tensors_in(folder: Path) -> dict[str, torch.Tensor]:
    return safetensors.torch.load_file(folder / files.WEIGHTS)


def put(folder: Path, tensors: dict[str, torch.Tensor]) -> None:
    safetensors.torch.save_file(tensors, folder / files.WEIGHTS)


def configure(folder: Path, **keys: object) -> None:
    path = folder / files.CONFIG
    path.write_text(json.dumps({**json.loads(path.read_text()), **keys}))


def test_a_folder_holds_two_files_and_is_written_over_whole(llama, folder) -> None:
    files.write(folder, bases.random_adapter(llama, 2), llama)
    assert sorted(path.name for path in folder.iterdir()) == [files.CONFIG, files.WEIGHTS]
    assert files.read(folder, llama) == bases.random_adapter(llama, 2)


def test_the_same_adapter_is_the_same_file(llama, folder) -> None:
    before = (folder / files.WEIGHTS).read_bytes()
    for _ in range(8):  # each would have an even chance to differ
        files.write(folder, bases.random_adapter(llama, 1), llama)
        assert (folder / files.WEIGHTS).read_bytes() == before
    with safetensors.safe_open(folder / files.WEIGHTS, framework="np") as file:
        assert file.metadata() == {"format": "pt", files.BASE_KEY: llama.fingerprint}


def test_the_config_reads_back_as_the_table_it_was_made_with(tmp_path, llama_folder) -> None:
    base = bases.load(
        llama_folder, rank=5, alpha=7, dropout=0.25, rank_stabilised=True, targets=["v_proj", "q_proj"]
    )
    files.write(tmp_path, bases.random_adapter(base, 1), base)
    table = files.read_config(tmp_path)
    assert (table.rank, table.alpha, table.dropout, table.rank_stabilised) == (5, 7, 0.25, True)
    assert table.targets == tuple(sorted(target.module for target in base.targets))


def test_a_base_from_the_hubs_cache_is_named_by_its_id_and_commit(llama, llama_folder, tmp_path) -> None:
    assert files.named(llama) == (str(llama_folder), None)
    snapshot = tmp_path / "models--someone--a-llama" / "snapshots" / ("0a" * 20)
    snapshot.parent.mkdir(parents=True)
    snapshot.symlink_to(llama_folder)
    config = files.config_of(bases.load(snapshot))
    assert (config.base_model_name_or_path, config.revision) == ("someone/a-llama", "0a" * 20)


def of_ranks(base: Base, ranks: Callable[[int], int], dead: int = 0) -> Adapter:
    """A random adapter whose i-th target has this rank, and ranks of zero after it."""
    rng = np.random.default_rng(0)
    tensors = {}
    for i, target in enumerate(base.targets):
        for name, shape in lora.shapes([target], ranks(i)).items():
            more = ((0, dead), (0, 0)) if "lora_A" in name else ((0, 0), (0, dead))
            tensors[name] = np.pad(rng.normal(0, 0.1, shape), more)
    return Adapter(tensors)


@pytest.mark.parametrize("stabilised", [False, True])
def test_ranks_that_differ_between_modules_are_written_for_peft_and_read(
    llama_folder, tmp_path, stabilised
) -> None:
    """`write` asks PEFT for every tensor, whose names PEFT takes as patterns."""
    base = bases.load(llama_folder, rank_stabilised=stabilised)
    adapter = of_ranks(base, lambda i: 3 + i % 3 + (i > 7), dead=2)
    files.write(tmp_path, adapter, base)
    config = json.loads((tmp_path / files.CONFIG).read_text())
    assert set(config["rank_pattern"].values()) | {config["r"]} == {3, 4, 5, 6}
    read = files.read(tmp_path, base)
    assert read == of_ranks(base, lambda i: 3 + i % 3 + (i > 7))
    table = files.read_config(tmp_path)
    assert lora.scaling(table) == pytest.approx(lora.scaling(base.adapter))
    files.write(tmp_path / "again", read, bases.load(llama_folder, rank_stabilised=stabilised))
    assert (tmp_path / "again" / files.WEIGHTS).read_bytes() == (tmp_path / files.WEIGHTS).read_bytes()


def test_ranks_above_the_runs_that_hold_nothing_are_not_written(llama, tmp_path) -> None:
    files.write(tmp_path, of_ranks(llama, lambda i: 3, dead=4), llama)
    assert files.read(tmp_path, llama) == of_ranks(llama, lambda i: 3)
    config = json.loads((tmp_path / files.CONFIG).read_text())
    assert (config["r"], config["lora_alpha"], config["rank_pattern"]) == (3, 6, {})
    blank = Adapter({name: tensor * 0 for name, tensor in of_ranks(llama, lambda i: 3).items()})
    files.write(tmp_path, blank, llama)  # the run's own ranks are, as before the first round
    assert files.read(tmp_path, llama) == blank


def test_a_rank_that_the_configuration_does_not_have_is_refused(llama, tmp_path) -> None:
    adapter = of_ranks(llama, lambda i: 3 + (i == 0))
    files.write(tmp_path, adapter, llama)
    assert files.read(tmp_path, llama) == adapter
    module = llama.targets[0].module
    for keys, message in (
        ({"rank_pattern": {module: 5}}, "alpha_pattern"),
        ({"rank_pattern": {}, "alpha_pattern": {}}, r"has shape \(4, 32\), expected \(3, 32\)"),
        ({"rank_pattern": {module: 5}, "alpha_pattern": {module: 10}}, r"\(4, 32\), expected \(5, 32\)"),
        ({"rank_pattern": {module: 4}, "alpha_pattern": {module: 9}}, "_pattern"),
        ({"rank_pattern": {"(a+)+": 4}, "alpha_pattern": {"(a+)+": 8}}, "_pattern"),
        ({"rank_pattern": {module: "4"}, "alpha_pattern": {module: 8}}, "_pattern"),
        ({"rank_pattern": {module: 0}, "alpha_pattern": {module: 8}}, "_pattern"),
        ({"rank_pattern": {module: 4}, "alpha_pattern": {"q_proj": 8}}, "_pattern"),
    ):  # fmt: skip
        files.write(tmp_path, adapter, llama)
        configure(tmp_path, **keys)
        with pytest.raises(AdapterError, match=message):
            files.read(tmp_path, llama)


def test_a_wrong_adapter_is_not_written(llama, tmp_path) -> None:
    with pytest.raises(AdapterError, match="is missing in the adapter to write"):
        files.write(tmp_path / "new", Adapter(), llama)
    assert not (tmp_path / "new").exists()


def test_a_folder_that_cannot_be_written_is_named(llama, tmp_path) -> None:
    (tmp_path / "taken").write_text("a file")
    with pytest.raises(FolderError, match="taken"):
        files.write(tmp_path / "taken", bases.random_adapter(llama, 1), llama)


def test_a_missing_extra_or_misshapen_tensor_is_named(llama, folder) -> None:
    whole = tensors_in(folder)
    put(folder, {name: tensor for name, tensor in whole.items() if name != FIRST})
    with pytest.raises(AdapterError, match=f"{FIRST} is missing in adapter {folder}"):
        files.read(folder, llama)
    put(folder, {**whole, "lm_head.lora_A.weight": torch.zeros(3, 32)})
    with pytest.raises(AdapterError, match=r"lm_head\.lora_A\.weight is not expected"):
        files.read(folder, llama)
    put(folder, {**whole, FIRST: whole[FIRST].T.contiguous()})
    with pytest.raises(AdapterError, match=rf"{FIRST}.* has shape \(32, 3\), expected \(3, 32\)"):
        files.read(folder, llama)


def test_another_base_of_the_same_shapes_is_told_apart(llama, folder, tmp_path) -> None:
    other = bases.load(bases.save(bases.CONFIGS["llama"], tmp_path / "other", seed=1))
    with pytest.raises(AdapterError, match=f"{llama.fingerprint}.*than .*other"):
        files.read(folder, other)


def test_an_adapter_without_our_note_is_taken_at_its_shapes(llama, folder) -> None:
    put(folder, tensors_in(folder))  # the metadata is gone, as in a folder that PEFT wrote
    assert files.read(folder, llama) == bases.random_adapter(llama, 1)


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16])
def test_half_precision_files_are_read_as_float32(llama, folder, kind) -> None:
    halves = {name: tensor.to(kind) for name, tensor in tensors_in(folder).items()}
    put(folder, halves)
    read = files.read(folder, llama)
    assert read == Adapter({name: tensor.float().numpy() for name, tensor in halves.items()})
    np.testing.assert_allclose(read[FIRST], bases.random_adapter(llama, 1)[FIRST], rtol=0.01)


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "adapter_config.json"])
def test_a_pointer_of_git_lfs_is_named(llama, folder, name) -> None:
    (folder / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0a\nsize 4567\n")
    with pytest.raises(AdapterError, match=rf"{name} is a pointer of Git LFS .* has 4,567 bytes; fetch it"):
        files.read(folder, llama)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"use_dora": True}, "use_dora = true"),
        ({"rank_pattern": {"q_proj": 4}}, "rank_pattern"),
        ({"rank_pattern": [1]}, r"rank_pattern = \[1\]"),
        ({"alpha_pattern": {"q_proj": "4"}}, "alpha_pattern"),
        ({"alpha_pattern": {"q_proj": 0}}, "alpha_pattern"),
        ({"alpha_pattern": {"q_proj": True}}, "alpha_pattern"),
        ({"alpha_pattern": {"(a+)+": 4}}, "alpha_pattern"),
        ({"alpha_pattern": {"q_proj": 4}, "target_parameters": ["mlp.experts.down_proj"]}, "alpha_pattern"),
        ({"alpha_pattern": "q_proj"}, 'alpha_pattern = "q_proj"'),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"bias": "all"}, 'bias = "all"'),
        ({"peft_type": "IA3", "feedforward_modules": ["w1"]}, 'peft_type = "IA3"'),
        ({"lora_alpha": 3}, "scales by 1, this run by 2"),
        ({"use_rslora": True}, "scales by 3.46"),
        ({"init_lora_weights": "pissa"}, "pissa"),  # PEFT would take the principal part out of the base
        ({"init_lora_weights": "corda"}, "corda"),
        ({"alora_invocation_tokens": [1]}, r"alora_invocation_tokens = \[1\]"),  # works from a token on
        ({"layers_to_transform": [0]}, "layers_to_transform"),
        ({"layers_to_transform": 0, "layers_pattern": "layers"}, "layers_"),
        ({"exclude_modules": ["k_proj"]}, "exclude_modules"),
        ({"megatron_config": {"tensor_parallel": 2}}, "megatron_config"),
        ({"layer_replication": [[0, 2]]}, "layer_replication"),
        ({"trainable_token_indices": [3]}, "trainable_token_indices"),
        ({"lora_bias": True}, "lora_bias"),
        ({"use_qalora": True}, "use_qalora"),
        ({"eva_config": {"rho": 2.0}}, "eva_config"),
        ({"corda_config": {"corda_method": "ipm"}}, "corda_config"),
        ({"loftq_config": {"loftq_bits": 4}}, "loftq_config"),
        ({"runtime_config": {"ephemeral_gpu_offload": True}}, "runtime_config"),
        ({"arrow_config": {"top_k": 3}}, "arrow_config"),
        ({"ensure_weight_tying": True}, "ensure_weight_tying"),
        ({"of_a_later_peft": 0.5}, "of_a_later_peft = 0.5"),
    ],
)
def test_a_config_that_would_give_other_logits_is_refused(llama, folder, keys, message) -> None:
    configure(folder, **keys)
    with pytest.raises(AdapterError, match=message):
        files.read(folder, llama)


@pytest.mark.parametrize(
    "keys",
    [
        {"rank_pattern": {"q_proj": 3}, "alpha_pattern": {"q_proj": 6}},  # as everywhere
        {"init_lora_weights": "gaussian"},
        {"init_lora_weights": False},
        {"layers_to_transform": [], "eva_config": {}, "megatron_core": None, "exclude_modules": ""},
        {
            "task_type": None,
            "inference_mode": False,
            "base_model_name_or_path": "org/model",
            "revision": "v1",
        },
        {"of_a_later_peft": None, "of_an_older_peft": False, "merge_weights": False, "enable_lora": None},
        {"lora_dropout": 0.5, "peft_version": "0.17.0", "auto_mapping": {"parent_library": "x"}},
    ],
)
def test_a_config_that_gives_the_same_logits_is_read(llama, folder, keys) -> None:
    configure(folder, **keys)
    assert files.read(folder, llama) == bases.random_adapter(llama, 1)


def test_the_config_of_an_early_peft_is_read(llama, folder) -> None:
    early = {"peft_type": "LORA", "r": 3, "lora_alpha": 6, "bias": "none", "fan_in_fan_out": False}
    (folder / files.CONFIG).write_text(json.dumps({**early, "target_modules": ["q_proj"]}))
    assert files.read(folder, llama) == bases.random_adapter(llama, 1)


def test_an_adapter_with_the_fingerprint_of_before_is_read(llama, folder) -> None:
    adapter = bases.random_adapter(llama, 1)
    old = fingerprint.of_tensors(llama.model, llama.targets)
    metadata = {"format": "pt", files.BASE_KEY: old}
    safetensors.torch.save_file(tensors_in(folder), folder / files.WEIGHTS, metadata)
    assert files.read(folder, llama) == adapter


def test_a_missing_or_broken_file_is_named(llama, folder) -> None:
    weights = folder / files.WEIGHTS
    whole = weights.read_bytes()
    for cut in (4, len(whole) // 2, len(whole) - 1):
        weights.write_bytes(whole[:cut])
        with pytest.raises(AdapterError, match=files.WEIGHTS):
            files.read(folder, llama)
    weights.unlink()
    with pytest.raises(AdapterError, match=files.WEIGHTS):
        files.read(folder, llama)
    for text in ("{", "[]", "{}", '{"peft_type": "LORA"}'):
        (folder / files.CONFIG).write_text(text)
        with pytest.raises(AdapterError, match=str(folder)):
            files.read(folder, llama)
    (folder / files.CONFIG).unlink()
    with pytest.raises(AdapterError, match=files.CONFIG):
        files.read(folder, llama)


class _Mark:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> object:
        return (Path.touch, (self.path,))


@pytest.mark.parametrize("name", ["adapter_model.bin", "adapter_model.pt", files.WEIGHTS])
def test_no_adapter_is_unpickled(llama, folder, tmp_path, name: str) -> None:
    (folder / files.WEIGHTS).unlink()
    torch.save({FIRST: _Mark(tmp_path / "mark")}, folder / name)
    with pytest.raises(AdapterError, match="safetensors"):
        files.read(folder, llama)
    assert not (tmp_path / "mark").exists()


@pytest.mark.parametrize(
    "keys",
    [
        {"auto_mapping": {"base_model_class": "Evil", "parent_library": "evil.module"}},
        {"base_model_name_or_path": "evil/repository", "revision": "main"},
    ],
)
def test_what_would_load_something_else_elsewhere_is_left_alone(llama, folder, keys: dict) -> None:
    before = files.read(folder, llama)
    configure(folder, **keys)
    assert files.read(folder, llama) == before


@pytest.mark.parametrize(
    "keys",
    [
        {"lora_bias": True},
        {"eva_config": {"rho": 2.0}},
        {"megatron_config": {"a": 1}, "megatron_core": "evil.module"},
        {"loftq_config": {"loftq_bits": 4}},
        {"trust_remote_code": True},
        {"runtime_config": {"ephemeral_gpu_offload": True}},
    ],
)
def test_a_key_that_is_not_known_here_is_refused(llama, folder, keys: dict) -> None:
    configure(folder, **keys)
    with pytest.raises(AdapterError, match=next(iter(keys))):
        files.read(folder, llama)


def test_targets_may_be_all_linear_or_a_pattern(folder) -> None:
    configure(folder, target_modules="all-linear")
    assert files.read_config(folder).targets == AdapterTable().targets
    configure(folder, target_modules=r".*\.q_proj")
    assert files.read_config(folder).targets == (r".*\.q_proj",)
