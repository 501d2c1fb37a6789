"""What adapters reach, counted against the shapes of a configuration by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM

from shepherd.model import lora
from shepherd.model.coverage import EMBEDDINGS, VECTORS, Coverage, coverage
from shepherd.settings import AdapterTable
from tests.model import bases, test_text_path

EXPERTS = "the experts of 2 layers (mlp.experts.down_proj, mlp.experts.gate_up_proj) are stacked parameters"
ATTENTION = 2 * (2 * 32 * 32 + 2 * 16 * 32)  # q, o; k, v
ROUTERS = 2 * 4 * 32
STACKS = 2 * 4 * (96 * 32 + 32 * 48)


def of(config: Any, **adapter: Any) -> Coverage:
    model = AutoModelForCausalLM.from_config(config)
    return coverage(model, lora.attach(model, AdapterTable(**adapter)))


def test_mixtral_by_hand() -> None:
    found = of(bases.MIXTURES["mixtral"])
    assert found.adapted == ATTENTION
    assert found.left_out == {
        EMBEDDINGS: 2 * 61 * 32,
        "stacked parameters: mlp.experts.down_proj, mlp.experts.gate_up_proj": STACKS,
        "matrices that are no linear module: mlp.gate.weight": ROUTERS,
        VECTORS: 5 * 32,
    }
    assert found.parameters == ATTENTION + sum(found.left_out.values())
    assert found.share == pytest.approx(ATTENTION / (ATTENTION + STACKS + ROUTERS))
    assert found.sentence == (
        f"adapters reach 14% of the weights in the layers' matrices: {EXPERTS}; name them in"
        " adapter.target_parameters to tune them"
    )


@pytest.mark.parametrize("kind", [*bases.CONFIGS, *bases.MIXTURES])
def test_each_weight_counts_once(kind: str) -> None:
    config = {**bases.CONFIGS, **bases.MIXTURES}[kind]
    found, model = of(config), AutoModelForCausalLM.from_config(config)
    assert found.parameters == sum(p.numel() for p in model.parameters())  # a tied head once
    assert found.adapted + sum(found.left_out.values()) == found.parameters


@pytest.mark.parametrize("kind", bases.CONFIGS)
def test_a_dense_base_is_reached_whole(kind: str) -> None:
    found = of(bases.CONFIGS[kind])
    assert found.share == 1.0
    assert found.sentence == "adapters reach 100% of the weights in the layers' matrices"
    assert set(found.left_out) == {EMBEDDINGS, VECTORS}


def test_tuned_experts_are_reached() -> None:
    found = of(bases.MIXTURES["mixtral"], target_parameters=bases.STACKS)
    assert found.adapted == ATTENTION + STACKS
    assert found.sentence == "adapters reach 99% of the weights in the layers' matrices"
    half = of(bases.MIXTURES["mixtral"], target_parameters=bases.STACKS[1:])
    assert "the experts of 2 layers (mlp.experts.gate_up_proj) are stacked parameters; name" in half.sentence


def test_what_the_targets_leave_out_is_named() -> None:
    found = of(bases.CONFIGS["phi3"], targets=("down_proj", "o_proj"))
    key = "linear modules that adapter.targets leaves out: mlp.gate_up_proj, self_attn.qkv_proj"
    assert found.left_out[key] == 2 * (96 * 32 + 96 * 32)
    assert found.sentence.endswith("adapter.targets leaves out mlp.gate_up_proj, self_attn.qkv_proj")


def test_towers_are_named_and_do_not_count_against_the_share() -> None:
    model = test_text_path.network("gemma3")
    found = coverage(model, lora.attach(model, AdapterTable()))
    key = "text does not reach: model.vision_tower, model.multi_modal_projector"
    parts = model.model.vision_tower, model.model.multi_modal_projector
    assert found.left_out[key] == sum(p.numel() for part in parts for p in part.parameters())
    assert found.share == 1.0
    assert found.sentence.endswith("text does not reach model.vision_tower, model.multi_modal_projector")


def test_stacks_that_cannot_be_tuned_are_not_offered() -> None:
    from tests.model.test_experts import jetmoe

    sentence = of(jetmoe()).sentence
    assert "mlp.input_linear.weight, mlp.output_linear.weight" in sentence
    assert sentence.endswith("are stacked parameters, which cannot be tuned here")


def test_a_module_used_twice_and_a_packed_weight_count_once_and_whole() -> None:
    model = AutoModelForCausalLM.from_config(bases.CONFIGS["llama"])
    whole = sum(p.numel() for p in model.parameters())
    first, second = model.model.layers
    second.mlp = first.mlp
    # as bitsandbytes stores four bits: two numbers a byte, in one column
    packed = nn.Parameter(torch.zeros(32 * 32 // 2, 1, dtype=torch.uint8), requires_grad=False)
    first.self_attn.q_proj.weight = packed
    sites = lora.attach(model, AdapterTable())
    found = coverage(model, sites)
    assert len(sites) == 11
    assert found.parameters == whole - 3 * 32 * 48
    assert found.share == 1.0
