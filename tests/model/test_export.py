"""What is exported is what was trained (law 4): PEFT gives the same logits, or training is refused."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import peft
import pytest
import safetensors.torch
import torch
from peft import AutoPeftModelForCausalLM, LoraConfig
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from benchmarks import tiny
from shepherd.core import Adapter
from shepherd.errors import AdapterError
from shepherd.model import files, lora, pass_plan, peft_loading
from shepherd.model.base import Base
from tests.model import architectures, bases
from tests.model.in_peft import in_peft

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::RuntimeWarning")  # PEFT's, of targets
IDS = torch.tensor([[5, 7, 9, 11, 13, 20, 4, 33]])
QUICK = {"deepseek_v3", "laguna", "mixtral"}
KINDS = [
    kind if kind in QUICK else pytest.param(kind, marks=pytest.mark.slow)
    for kind in (*architectures.REWRITTEN, *architectures.USUAL)
]
REFUSED = {"laguna"}  # PEFT writes the names of its shared experts otherwise


def trained_logits(base: Base, adapter: Adapter) -> Tensor:
    """Logits as the trainer computes them, with one example alone."""
    lora.bind_adapters(base.model, base.targets, lora.stacked([adapter], base.device))
    with torch.no_grad(), pass_plan.use_plan(pass_plan.sequences([1])):
        return base.model(input_ids=IDS, use_cache=False).logits


def close(one: Tensor, other: Tensor) -> None:
    assert float((one - other).norm() / other.norm()) < 1e-5


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Bases on disk, each made once."""
    made: dict[str, Path] = {}

    def folder(kind: str) -> Path:
        if kind not in made:
            made[kind] = bases.save(architectures.config(kind), tmp_path_factory.mktemp(kind))
        return made[kind]

    return folder


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_written_has_the_trainers_logits_in_peft_or_is_refused_before_training(
    kind, folders, tmp_path
) -> None:
    base = bases.load(folders(kind))
    if kind in REFUSED:
        with pytest.raises(AdapterError, match=r"would not load the adapters of 6 modules") as refused:
            files.rehearse(base)
        targets = json.loads(str(refused.value).partition("adapter.targets = ")[2])
        base = bases.load(folders(kind), targets=targets)
    as_parameters = kind in architectures.REWRITTEN and kind not in REFUSED
    assert ("as target_parameters" in files.rehearse(base)) == as_parameters
    adapter = bases.random_adapter(base, 1)
    model = in_peft(base, adapter, tmp_path / "adapter")
    close(model(IDS).logits, trained_logits(base, adapter))
    assert files.read(tmp_path / "adapter", base) == adapter
    model.save_pretrained(tmp_path / "again")  # PEFT's own writing
    assert files.read(tmp_path / "again", base) == adapter


@pytest.mark.parametrize("kind", ["falcon_h1", "falcon_mamba", "mamba", "mamba2", "nemotron_h"])
def test_all_linear_leaves_out_what_peft_refuses_and_says_so(kind, tmp_path) -> None:
    folder = tiny.save(tiny.config(kind), tmp_path / "base")
    base = bases.load(folder)
    assert base.targets
    assert not [target for target in base.targets if target.module.endswith("out_proj")]
    assert files.rehearse(base) == (
        f'adapter.targets = "all-linear" leaves out out_proj, which PEFT refuses for {kind}'
    )
    adapter = bases.random_adapter(base, 1)
    close(in_peft(base, adapter, tmp_path / "adapter")(IDS).logits, trained_logits(base, adapter))
    named = bases.load(folder, targets=["in_proj", "out_proj"])
    with pytest.raises(AdapterError, match=r"'out_proj' is incompatible .*; change adapter\.targets"):
        files.rehearse(named)


def written_config(folder: Path) -> dict[str, object]:
    """The keys of a written configuration that are not empty."""
    return {key: value for key, value in json.loads((folder / files.CONFIG).read_text()).items() if value}


@pytest.mark.parametrize("kind", KINDS)
def test_what_peft_wrote_has_pefts_logits_here_or_is_refused(kind, folders, tmp_path) -> None:
    base = bases.load(folders(kind))
    leaves = sorted({target.module.rpartition(".")[2] for target in base.targets})
    for part in (leaves, [name for name in leaves if name not in ("gate_proj", "up_proj", "down_proj")]):
        network = AutoModelForCausalLM.from_pretrained(folders(kind), dtype=torch.float32)
        torch.manual_seed(0)
        config = LoraConfig(r=3, lora_alpha=6, target_modules=part, init_lora_weights=False)
        model = peft.get_peft_model(network, config).eval()
        model.save_pretrained(tmp_path / "theirs")
        ours = base if part is leaves else bases.load(folders(kind), targets=part)
        if part is leaves and "target_parameters" in written_config(tmp_path / "theirs"):
            with pytest.raises(AdapterError, match=r"(alpha_pattern|rank_pattern|target_parameters) ="):
                files.read(tmp_path / "theirs", ours)
        else:
            close(model(IDS).logits, trained_logits(ours, files.read(tmp_path / "theirs", ours)))


@pytest.mark.parametrize("stabilised", [False, True])
def test_an_alpha_of_their_own_for_some_modules_scales_as_in_peft(llama_folder, tmp_path, stabilised) -> None:
    network = AutoModelForCausalLM.from_pretrained(llama_folder, dtype=torch.float32)
    torch.manual_seed(0)
    alphas = {"layers.0.self_attn.q_proj": 5, "q_proj": 1, "down_proj": 24}  # the first that fits counts
    leaves = ["q_proj", "v_proj", "down_proj"]
    config = LoraConfig(
        r=3, lora_alpha=6, alpha_pattern=alphas, target_modules=leaves,
        use_rslora=stabilised, init_lora_weights=False,
    )  # fmt: skip
    model = peft.get_peft_model(network, config).eval()
    model.save_pretrained(tmp_path / "theirs")
    base = bases.load(llama_folder, targets=leaves, rank=3, alpha=6, rank_stabilised=stabilised)
    adapter = files.read(tmp_path / "theirs", base)
    expected = model(IDS).logits
    close(expected, trained_logits(base, adapter))
    files.write(tmp_path / "ours", adapter, base)  # with one scale for all
    assert "alpha_pattern" not in written_config(tmp_path / "ours")
    close(expected, in_peft(base, adapter, tmp_path / "again")(IDS).logits)
    whole = safetensors.torch.load_file(tmp_path / "theirs" / files.WEIGHTS)
    same = [name for name in whole if "v_proj" in name or ".lora_A." in name]
    assert len(same) == 2 * 4  # of 2 layers: A of three targets, and B of the one that has no alpha
    for name in same:
        np.testing.assert_array_equal(adapter[name], whole[name].numpy())


def test_a_rewritten_target_without_its_partner_arrives_too(folders, tmp_path) -> None:
    for target in ("down_proj", "gate_proj"):  # PEFT refuses gate_proj without up_proj
        base = bases.load(folders("deepseek_v3"), targets=[target], dropout=0.25)
        assert files.rehearse(base).endswith("a dropout of 0, the only one that PEFT allows there")
        adapter = bases.random_adapter(base, 2)
        model = in_peft(base, adapter, tmp_path / target)
        close(model(IDS).logits, trained_logits(base, adapter))
        table = files.read_config(tmp_path / target)
        assert table.targets == tuple(sorted(target.module for target in base.targets))


def test_an_adapter_that_peft_would_change_is_written_and_then_refused(folders, tmp_path) -> None:
    base = bases.load(folders("laguna"))
    adapter = bases.random_adapter(base, 1)
    with pytest.raises(AdapterError, match=r"12 of its 48 tensors.*shared_experts.*adapter\.targets"):
        files.write(tmp_path / "adapter", adapter, base)
    assert files.read(tmp_path / "adapter", base) == adapter  # hours of training are not lost


@pytest.fixture
def folder(llama, tmp_path) -> Path:
    files.write(tmp_path / "adapter", bases.random_adapter(llama, 1), llama)
    return tmp_path / "adapter"


def test_lost_names_what_is_missing_renamed_changed_or_scaled_otherwise(llama, folder) -> None:
    adapter = bases.random_adapter(llama, 1)
    assert peft_loading.lost(folder, adapter, llama) == ([], "")
    whole = safetensors.torch.load_file(folder / files.WEIGHTS)
    first, second = sorted(whole)[:2]
    for name, changed in {
        "missing": {name: tensor for name, tensor in whole.items() if name != first},
        "renamed": {name.replace(first, "x." + first): tensor for name, tensor in whole.items()},
        "changed": {**whole, first: whole[first] + 1e-6},
    }.items():
        safetensors.torch.save_file(changed, folder / files.WEIGHTS)
        assert peft_loading.lost(folder, adapter, llama) == ([first], ""), name
    safetensors.torch.save_file(whole, folder / files.WEIGHTS)
    config = json.loads((folder / files.CONFIG).read_text())
    module = first.removeprefix(lora.PEFT_PREFIX).partition(".lora_")[0]
    (folder / files.CONFIG).write_text(json.dumps({**config, "alpha_pattern": {module: 7}}))
    assert peft_loading.lost(folder, adapter, llama) == ([first, second], "")


def test_where_a_base_cannot_be_built_without_weights_it_is_said(llama, tmp_path, monkeypatch) -> None:
    def refuses(*arguments: object, **options: object) -> None:
        raise RuntimeError("no weights")

    monkeypatch.setattr(type(llama.model), "__init__", refuses)
    assert "cannot be built without its weights (RuntimeError: no weights)" in files.rehearse(llama)
    files.write(tmp_path, bases.random_adapter(llama, 1), llama)
    assert files.read(tmp_path, llama) == bases.random_adapter(llama, 1)


def test_a_quantised_base_is_checked_as_its_plain_self(llama, folder, monkeypatch) -> None:
    about = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    monkeypatch.setattr(llama.model.config, "quantization_config", about, raising=False)
    assert peft_loading.lost(folder, bases.random_adapter(llama, 1), llama) == ([], "")
    assert llama.model.config.quantization_config is about


def test_the_folder_alone_loads_from_anywhere(llama_folder, tmp_path, monkeypatch) -> None:
    (tmp_path / "here" / "models").mkdir(parents=True)
    (tmp_path / "there").mkdir()
    shutil.copytree(llama_folder, tmp_path / "here" / "models" / "base")
    monkeypatch.chdir(tmp_path / "here")
    base = bases.load(Path("models/base"))
    adapter = bases.random_adapter(base, 1)
    files.write(tmp_path / "adapter", adapter, base)
    files.write_tokenizer(tmp_path / "adapter", base, [4, 2])
    monkeypatch.chdir(tmp_path / "there")
    model = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "adapter", dtype=torch.float32)
    close(model(IDS).logits, trained_logits(base, adapter))
    read = AutoTokenizer.from_pretrained(tmp_path / "adapter")
    assert read("w4 w5 </s> w9").input_ids == base.tokenizer("w4 w5 </s> w9").input_ids
    ends = GenerationConfig.from_pretrained(tmp_path / "adapter")
    assert (ends.eos_token_id, ends.pad_token_id, ends.bos_token_id) == ([2, 4], 0, 1)


def test_equal_runs_write_equal_bytes(llama, tmp_path) -> None:
    for name in ("one", "two"):
        files.write(tmp_path / name, bases.random_adapter(llama, 1), llama)
        files.write_tokenizer(tmp_path / name, llama, [2])
        llama.tokenizer(["w4", "w5 w6 w7"], padding=True, truncation=True, max_length=2)  # leaves its mark
    names = sorted(os.listdir(tmp_path / "one"))
    assert {files.CONFIG, files.WEIGHTS, "generation_config.json", "tokenizer.json"} <= set(names)
    for name in names:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes(), name
    assert json.loads((tmp_path / "one" / "tokenizer.json").read_text())["truncation"] is None
    about = json.loads((tmp_path / "one" / "tokenizer_config.json").read_text())
    assert about["tokenizer_class"] == "PreTrainedTokenizerFast"  # which every transformers knows
    assert not {"is_local", "local_files_only", "name_or_path"} & set(about)
    targets = json.loads((tmp_path / "one" / files.CONFIG).read_text())["target_modules"]
    assert targets == sorted(target.module for target in llama.targets)


def test_the_chat_template_goes_along(llama, tmp_path, monkeypatch) -> None:
    template = "{% for m in messages %}{{ m.content }}</s>{% endfor %}"
    monkeypatch.setattr(llama.tokenizer, "chat_template", template)
    files.write_tokenizer(tmp_path, llama, [2])
    assert AutoTokenizer.from_pretrained(tmp_path).chat_template == template
