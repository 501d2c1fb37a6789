"""The shapes of an adapter without the weights, against the loaded base's own."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from shepherd.errors import BaseError
from shepherd.model import meta_shapes
from shepherd.settings import AdapterTable
from tests.model import bases


@pytest.mark.parametrize("kind", bases.CONFIGS)
def test_it_is_what_the_loaded_base_gives(tmp_path: Path, kind: str) -> None:
    folder = bases.save(bases.CONFIGS[kind], tmp_path / kind)
    base = bases.load(folder)
    assert meta_shapes.shapes(str(folder), base.adapter) == base.shapes
    assert list(meta_shapes.shapes(str(folder), base.adapter)) == list(base.shapes)


def test_no_weight_is_read(llama_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text((llama_folder / "config.json").read_text())
    found = meta_shapes.shapes(str(tmp_path), AdapterTable(rank=5, targets=("q_proj",)))
    assert {name.split(".")[-2] for name in found} == {"lora_A", "lora_B"}
    assert all("q_proj" in name and 5 in shape for name, shape in found.items())


@pytest.mark.parametrize(
    "config", ["", "{}", json.dumps({"model_type": "nobodys"}), json.dumps({"model_type": "vit"})]
)
def test_a_configuration_that_cannot_be_used_is_named(tmp_path: Path, config: str) -> None:
    (tmp_path / "config.json").write_text(config)
    with pytest.raises(BaseError, match=r"the configuration of base .* cannot be used"):
        meta_shapes.shapes(str(tmp_path), AdapterTable())


def test_code_that_comes_with_a_base_is_not_run(llama_folder: Path, tmp_path: Path) -> None:
    config = json.loads((llama_folder / "config.json").read_text())
    config |= {
        "model_type": "theirs",
        "auto_map": {"AutoConfig": "theirs.Config", "AutoModelForCausalLM": "theirs.Model"},
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "theirs.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    with pytest.raises(BaseError, match="that transformers knows by itself"):
        meta_shapes.shapes(str(tmp_path), AdapterTable())
    assert not (tmp_path / "ran").exists()


def test_a_target_that_is_none_is_named(llama_folder: Path) -> None:
    with pytest.raises(BaseError, match=r"adapter\.targets names 'nose'"):
        meta_shapes.shapes(str(llama_folder), AdapterTable(targets=("nose",)))
