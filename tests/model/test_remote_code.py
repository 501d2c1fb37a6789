"""Law 12 in a base's files: what has transformers fetch code, call a host or unpickle is refused by name."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from safetensors.torch import load_file, save_file

from shepherd import world
from shepherd.consent import Consent
from shepherd.errors import BaseError, TemplateError
from shepherd.machine import plan
from shepherd.model import base as bases
from shepherd.model import files, meta_shapes, remote_code
from shepherd.run import loading
from shepherd.settings import AdapterTable, ModelTable

KERNELS = """
import os, sys
class _Any:
    ALL = None
    def __init__(self, *a, **k): pass
CUDAProperties = Device = KernelizeFallback = LayerRepository = LocalLayerRepository = _Any
FuncRepository = ROCMProperties = Mode = _Any
def register_kernel_mapping(*a, **k): pass
replace_kernel_forward_from_hub = use_kernel_mapping = kernelize = register_kernel_mapping
def use_kernel_forward_from_hub(name): return lambda cls: cls
def use_kernelized_func(*names): return lambda cls: cls
def get_kernel(name, *a, **k):
    open(os.environ["MARK"], "a").write(name)
    raise FileNotFoundError(name)
"""
"""What stands in for the package `kernels`: it says which code it would fetch and run."""

LOAD = """
import os, sys
from shepherd.errors import BaseError
from shepherd.model import base as bases
from shepherd.settings import AdapterTable, ModelTable
from transformers.utils.import_utils import is_kernels_available
assert is_kernels_available()
for folder in sys.argv[1:]:
    try:
        bases.load(ModelTable(base=folder, dtype="float32"), AdapterTable(rank=2))
    except BaseError as error:
        print(error)
    else:
        print("loaded")
"""


@pytest.fixture
def copied(tmp_path: Path) -> Callable[..., Path]:
    """Makes copies of the embedded base with other keys in a file."""
    made: list[Path] = []

    def copy(file: str = "config.json", **keys: Any) -> Path:
        made.append(Path(shutil.copytree(world.base_path(), tmp_path / f"base-{len(made)}")))
        path = made[-1] / file
        path.write_text(json.dumps({**json.loads(path.read_text()), **keys}))
        return made[-1]

    return copy


def table(folder: Path | str, **keys: Any) -> ModelTable:
    return ModelTable.model_validate({"base": str(folder), "dtype": "float32", **keys})


def refusals(folder: Path) -> list[str]:
    """What each way to a base says."""
    asked = table(folder)
    ways: list[Callable[[], object]] = [
        lambda: bases.load(asked, AdapterTable(rank=2)),
        lambda: bases.load_tokenizer(asked),
        lambda: meta_shapes.size(asked),
        lambda: meta_shapes.adapter_bytes(str(folder), 2),
    ]
    found = []
    for way in ways:
        with pytest.raises(BaseError) as caught:
            way()
        found.append(str(caught.value))
        assert "\n" not in found[-1]
    return found


FETCHED = [
    ({"attn_implementation": "kernels-community/flash-attn2"}, 'attn_implementation = "kernels-community/fl'),
    ({"_attn_implementation": "evil/kernel@main:f"}, '_attn_implementation = "evil/kernel@main:f"'),
    ({"attn_implementation": "paged|evil/kernel"}, 'attn_implementation = "paged|evil/kernel"'),
    ({"attn_implementation": {"": "evil/kernel"}}, 'attn_implementation = "evil/kernel"'),
    ({"attn_implementation": {"text_config": "evil/k"}}, 'attn_implementation.text_config = "evil/k"'),
    ({"experts_implementation": "sonicmoe"}, 'experts_implementation = "sonicmoe"'),
    ({"_experts_implementation": "evil/kernel"}, '_experts_implementation = "evil/kernel"'),
    ({"text_config": {"attn_implementation": "evil/k"}}, 'text_config.attn_implementation = "evil/k"'),
    ({"parts": [{"_attn_implementation": "evil/k"}]}, 'parts.0._attn_implementation = "evil/k"'),
    ({"vision_config": {"backbone": "evil/repository"}}, 'vision_config.backbone = "evil/repository"'),
    ({"backbone": "evil/repository", "model_type": "rt_detr"}, 'backbone = "evil/repository"'),
]


@pytest.mark.parametrize(("keys", "named"), FETCHED)
def test_a_configuration_has_nothing_fetched(
    copied: Callable[..., Path], keys: dict[str, Any], named: str
) -> None:
    folder = copied(**keys)
    for said in refusals(folder):
        assert f"base {folder}" in said
        assert named in said
        assert "config.json" in said
        assert "nothing was downloaded" in said
        assert "--trust-remote-code" in said


def test_nor_does_one_of_another_name_that_it_leads_to(copied: Callable[..., Path]) -> None:
    folder = copied(configuration_files=["config.4.0.0.json"])
    keys = json.loads((folder / "config.json").read_text())
    (folder / "config.4.0.0.json").write_text(json.dumps({**keys, "attn_implementation": "evil/kernel"}))
    assert all('"evil/kernel"' in said for said in refusals(folder))


WITH_KERNELS = [
    ({"attn_implementation": "flash_attention_2"}, 'attn_implementation = "flash_attention_2"'),
    ({"quantization_config": {"quant_method": "mxfp4"}}, 'quantization_config.quant_method = "mxfp4"'),
    ({"quantization_config": {"quant_method": "fp8"}}, 'quantization_config.quant_method = "fp8"'),
    ({"model_type": "rwkv"}, 'model_type = "rwkv"'),
]


@pytest.mark.parametrize(("keys", "named"), WITH_KERNELS)
def test_what_is_fetched_where_the_package_kernels_is_there(
    copied: Callable[..., Path], keys: dict[str, Any], named: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = copied(**keys)
    monkeypatch.setattr(remote_code, "find_spec", lambda name: ModuleSpec(name, None))
    assert all(named in said for said in refusals(folder))
    monkeypatch.setattr(remote_code, "find_spec", lambda name: None)
    with suppress(BaseError):  # its weights are no such ones, or there is no flash_attn here
        bases.load(table(folder), AdapterTable(rank=2))
    assert not remote_code.allowed(table(folder))


def test_against_transformers_itself_no_kernel_is_asked_for(
    copied: Callable[..., Path], tmp_path: Path
) -> None:
    from transformers.utils import import_utils

    version = getattr(import_utils, "KERNELS_MIN_VERSION", None)
    if version is None:
        pytest.skip("this transformers takes no such package")
    package = tmp_path / "with" / "kernels"
    (package / "layer").mkdir(parents=True)
    (package / "__init__.py").write_text(f"__version__ = {version!r}\n{KERNELS}")
    (package / "layer" / "__init__.py").write_text("")
    (package / "layer" / "mode.py").write_text("class Mode: INFERENCE, TRAINING = 1, 2\n")
    about = tmp_path / "with" / f"kernels-{version}.dist-info"
    about.mkdir()
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: kernels\nVersion: {version}\n")
    (about / "RECORD").write_text("kernels/__init__.py,,\n")
    folders = [copied(**keys) for keys, _ in (*FETCHED[:3], WITH_KERNELS[0])]
    path = os.pathsep.join([str(tmp_path / "with"), *filter(None, sys.path)])
    environment = {**os.environ, "MARK": str(tmp_path / "mark"), "PYTHONPATH": path}
    done = subprocess.run(
        [sys.executable, "-c", LOAD, *map(str, folders)], env=environment, capture_output=True, text=True
    )
    assert done.stdout.count("nothing was downloaded") == len(folders), done.stdout + done.stderr
    assert not (tmp_path / "mark").exists()


@pytest.mark.parametrize("how", ["eager", "sdpa", None])
def test_what_torch_has_itself_is_no_such_thing(copied: Callable[..., Path], how: str | None) -> None:
    base = bases.load(table(copied(attn_implementation=how, quantization_config=None)), AdapterTable(rank=2))
    assert base.attention == (how or "sdpa")


def test_a_person_who_has_read_it_may_say_so(copied: Callable[..., Path]) -> None:
    folder = copied(text_config={"attn_implementation": "their/kernel@v1"}, backbone="their/eyes")
    asked = table(folder, trust_remote_code=True)
    assert remote_code.allowed(asked, Consent(remote_code=True))
    assert remote_code.whose(asked).endswith(
        ", and of the Hugging Face repositories their/eyes and their/kernel"
    )
    with pytest.raises(BaseError, match="their/kernel on this machine"):
        remote_code.allowed(asked, Consent())


# --- weights


class Mark:
    """Touches a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (Path.touch, (self.path,))


def pickled(folder: Path, mark: Path) -> None:
    """The base's weights as a pickle that acts, in place of the safetensors."""
    (folder / "model.safetensors").unlink()
    with (folder / "pytorch_model.bin").open("wb") as file:
        torch.save({"a": Mark(mark)}, file)


def test_pickled_weights_are_refused(copied: Callable[..., Path], tmp_path: Path) -> None:
    folder = copied()
    pickled(folder, tmp_path / "mark")
    with pytest.raises(BaseError, match=r"has its weights as a pickle.*save_pretrained") as caught:
        bases.load(table(folder), AdapterTable(rank=2))
    assert str(folder) in str(caught.value)
    assert not (tmp_path / "mark").exists()


@pytest.mark.parametrize("name", ["pytorch_model.bin", "../base-0/pytorch_model.bin", "/etc/passwd"])
def test_an_index_names_safetensors_of_its_folder(
    copied: Callable[..., Path], tmp_path: Path, name: str
) -> None:
    folder = copied()
    pickled(folder, tmp_path / "mark")
    index = {"metadata": {}, "weight_map": {"model.embed_tokens.weight": name}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(BaseError, match="only safetensors of its own folder"):
        bases.load(table(folder), AdapterTable(rank=2))
    assert not (tmp_path / "mark").exists()


def test_no_other_weights_are_loaded_than_those_that_the_digest_covers(copied: Callable[..., Path]) -> None:
    folder = copied(transformers_weights="other.safetensors")
    shutil.copy(folder / "model.safetensors", folder / "other.safetensors")
    with pytest.raises(BaseError, match=r'transformers_weights = "other\.safetensors"'):
        bases.load(table(folder), AdapterTable(rank=2))
    folder = copied()
    shutil.copy(folder / "model.safetensors", folder / "shard-00001-model-00001-of-00001.safetensors")
    with pytest.raises(BaseError, match=r"shard-00001-model-00001-of-00001\.safetensors"):
        bases.load(table(folder), AdapterTable(rank=2))


def test_a_repository_without_safetensors_is_refused_and_nobody_is_asked_to_convert_it(
    copied: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers.utils import hub

    folder = copied()
    pickled(folder, tmp_path / "mark")
    home = tmp_path / "hub" / "models--owner--name"
    shutil.copytree(folder, home / "snapshots" / "c0ffee")
    (home / "refs").mkdir()
    (home / "refs" / "main").write_text("c0ffee")
    monkeypatch.setattr(hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    with pytest.raises(BaseError, match=r"base owner/name has no safetensors.*save_pretrained"):
        bases.load(table("owner/name"), AdapterTable(rank=2))
    assert not (tmp_path / "mark").exists()


def test_what_is_checked_of_a_repository_is_what_is_loaded(
    copied: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers.utils import hub

    checked, pushed = "0a" * 20, "0b" * 20
    home = tmp_path / "hub" / "models--owner--name"
    folder = shutil.copytree(copied(), home / "snapshots" / checked)
    shutil.copytree(copied(), home / "snapshots" / pushed)
    (home / "snapshots" / pushed / "chat_template.jinja").write_text("pushed")
    weights = load_file(folder / "model.safetensors")
    changed = {name: weight + 1 for name, weight in weights.items()}
    save_file(changed, home / "snapshots" / pushed / "model.safetensors", {"format": "pt"})
    (home / "refs").mkdir()
    (home / "refs" / "main").write_text(checked)
    monkeypatch.setattr(hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    require = bases._require_safetensors

    def and_then_somebody_pushes(model: ModelTable) -> None:
        require(model)
        (home / "refs" / "main").write_text(pushed)

    monkeypatch.setattr(bases, "_require_safetensors", and_then_somebody_pushes)
    found = bases.load(table("owner/name"), AdapterTable(rank=2))
    assert found.fingerprint == bases.load(table(folder), AdapterTable(rank=2)).fingerprint
    assert found.tokenizer.chat_template != "pushed"
    assert found.table.revision == checked  # the workers' too
    assert files.named(found) == ("owner/name", checked)
    name, weight = next(iter(weights.items()))
    assert torch.equal(found.model.state_dict()[name], weight)


def test_a_run_goes_on_with_the_commit_that_it_began_with(
    copied: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers.utils import hub

    from shepherd.overrides import parse, read
    from shepherd.run.opening import open_run

    commit = "0a" * 20
    home = tmp_path / "hub" / "models--owner--name"
    shutil.copytree(copied(), home / "snapshots" / commit)
    (home / "refs").mkdir()
    (home / "refs" / "main").write_text(commit)
    monkeypatch.setattr(hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    run = {
        "output": str(tmp_path / "run"),
        "model": {"base": "owner/name", "dtype": "float32"},
        "data": {"source": "world", "limit": 60},
        "split": {"clients": 2},
        "evaluation": {"answers": 0, "examples": 2},
    }
    open_run(parse(run)).close()
    assert read(tmp_path / "run" / "run.toml").model.revision is None  # as it was given
    assert plan.read(tmp_path / "run").commit == commit


@pytest.mark.parametrize("name", ["model.gguf", "owner/model.gguf", "adapter.pt"])
def test_a_file_by_name_is_no_base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(pickle.dumps(Mark(tmp_path / "mark")))
    for given in (name, str(path)):
        with pytest.raises(BaseError):
            bases.load(loading.placed(table(given)), AdapterTable(rank=2))
    assert not (tmp_path / "mark").exists()


# --- the tokenizer


@pytest.mark.parametrize(
    "keys",
    [
        {"auto_map": {"AutoTokenizer": [None, "evil.Evil"]}},
        {"auto_map": {"AutoTokenizer": [None, "evil/repository--evil.Evil"]}, "trust_remote_code": True},
        {"tokenizer_class": "EvilTokenizer", "trust_remote_code": True, "gguf_file": "x.gguf"},
    ],
)
def test_a_tokenizer_runs_no_code_of_its_own(
    copied: Callable[..., Path], tmp_path: Path, keys: dict[str, Any]
) -> None:
    folder = copied("tokenizer_config.json", **keys)
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'mark')!r}, 'w')\nclass Evil: pass\n")
    with suppress(BaseError):
        bases.load_tokenizer(table(folder))
    assert not (tmp_path / "mark").exists()


def test_a_chat_template_runs_in_a_sandbox(copied: Callable[..., Path], tmp_path: Path) -> None:
    from shepherd.data.examples import Turn
    from shepherd.data.template import Template, prompt

    acting = f"{{{{ cycler.__init__.__globals__.os.system('touch {tmp_path / 'mark'}') }}}}"
    spying = "{{ namespace.__init__.__globals__['__builtins__'] }}{{ messages.append(1) }}"
    for source in (acting, spying):
        tokenizer = bases.load_tokenizer(table(copied("tokenizer_config.json", chat_template=source)))
        with pytest.raises(TemplateError):
            prompt((Turn(role="user", text="hello"),), Template(name="chat"), tokenizer)
    assert not (tmp_path / "mark").exists()


def test_the_fields_are_those_that_transformers_reads() -> None:
    """A rename in transformers would leave a check of ours without anything to check."""
    config = hf.LlamaConfig(attn_implementation="eager")
    assert config._attn_implementation == "eager"
    assert hf.LlamaConfig(_attn_implementation="eager")._attn_implementation == "eager"
