"""The parts that text does not reach, against the linear modules that a pass over text does not call."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import CONFIG_MAPPING, AutoConfig, AutoModelForCausalLM

from shepherd.errors import BaseError
from shepherd.model import lora, meta_shapes, text_path
from shepherd.settings import AdapterTable
from tests.model import bases

TEXT = {
    "vocab_size": bases.VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
SEEN = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 16,
    "patch_size": 8,
}
HEARD = {
    "moss": {
        "d_model": 16,
        "encoder_layers": 1,
        "encoder_attention_heads": 2,
        "encoder_ffn_dim": 24,
        "num_mel_bins": 8,
        "max_source_positions": 20,
    },
    "phi4": {
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_blocks": 1,
        "num_attention_heads": 2,
        "ext_pw_out_channel": 16,
        "nemo_conv_channels": 16,
        "depthwise_separable_out_channel": 16,
        "audio_token_id": 6,
        "input_size": 8,
    },
}
BARE = {key: value for key, value in TEXT.items() if key not in ("num_key_value_heads", "head_dim")}
CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "gemma3": ("gemma3", {"text_config": TEXT, "vision_config": SEEN, "mm_tokens_per_image": 4}),
    "gemma4": (
        "gemma4",
        {
            "text_config": {
                **TEXT,
                "hidden_size_per_layer_input": 8,
                "vocab_size_per_layer_input": bases.VOCABULARY,
                "global_head_dim": 8,
                "layer_types": ["sliding_attention", "full_attention"],
                "num_kv_shared_layers": 0,
            },
            "vision_config": {**SEEN, "num_key_value_heads": 2, "head_dim": 8},
        },
    ),
    "fuyu": ("fuyu", {"text_config": {"model_type": "persimmon", **BARE}, "patch_size": 4}),
    "moss": (
        "moss_transcribe_diarize",
        {"text_config": {"model_type": "qwen3", **TEXT}, "audio_config": HEARD["moss"]},
    ),
    "got_ocr2": (
        "got_ocr2",
        {
            "text_config": {"model_type": "qwen2", **BARE, "num_key_value_heads": 2},
            "vision_config": {
                **{key: value for key, value in SEEN.items() if key != "intermediate_size"},
                "output_channels": 16,
                "mlp_dim": 24,
                "window_size": 2,
                "global_attn_indexes": [1],
            },
        },
    ),
    # its configuration is a flat one: the towers stand inside the text model
    "phi4": (
        "phi4_multimodal",
        {
            **BARE,
            "num_key_value_heads": 2,
            "vision_config": {**SEEN, "crop_size": 16, "image_token_id": 5},
            "audio_config": HEARD["phi4"],
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e4},
        },
    ),
}
TOWERS = {
    "gemma3": ("model.vision_tower", "model.multi_modal_projector"),
    "gemma4": ("model.vision_tower", "model.embed_vision"),
    "fuyu": ("model.vision_embed_tokens",),
    "moss": ("model.audio_tower", "model.multi_modal_projector"),
    "got_ocr2": ("model.vision_tower", "model.multi_modal_projector"),
    "phi4": ("model.embed_tokens_extend",),
}


def network(kind: str) -> Any:
    torch.manual_seed(0)
    name, options = CONFIGS[kind]
    return AutoModelForCausalLM.from_config(CONFIG_MAPPING[name](**options), dtype=torch.float32).eval()


def called(model: nn.Module) -> set[str]:
    """The linear modules, without the head, that a pass over text calls."""
    found: set[str] = set()
    for name, module in model.named_modules():
        if lora.widths(module) is not None and name != "lm_head":
            module.register_forward_hook(lambda *_, name=name: found.add(name))
    with torch.no_grad():
        model(torch.randint(7, bases.VOCABULARY, (1, 5)), use_cache=False)
    return found


@pytest.mark.parametrize("kind", CONFIGS)
def test_the_adapted_modules_are_those_that_a_pass_over_text_calls(kind: str) -> None:
    model = network(kind)
    expected = called(model)
    assert text_path.towers(model) == TOWERS[kind]
    assert {target.module for target in lora.attach(model, AdapterTable())} == expected


@pytest.mark.parametrize("kind", [*bases.CONFIGS, *bases.MIXTURES])
def test_a_language_model_has_no_tower(kind: str) -> None:
    model = AutoModelForCausalLM.from_config({**bases.CONFIGS, **bases.MIXTURES}[kind])
    assert text_path.towers(model) == ()


@pytest.mark.parametrize("kind", ["gemma3", "phi4"])
def test_a_site_that_has_the_configuration_alone_finds_the_same(kind: str, tmp_path: Path) -> None:
    model = network(kind)
    model.config.save_pretrained(tmp_path)
    assert type(AutoConfig.from_pretrained(tmp_path)) is type(model.config)
    expected = lora.shapes(lora.attach(model, AdapterTable()), 8)
    assert list(meta_shapes.shapes(str(tmp_path), AdapterTable()).items()) == list(expected.items())


def test_every_adapter_of_a_loaded_one_is_trained(tmp_path: Path) -> None:
    name, options = CONFIGS["gemma3"]
    base = bases.load(bases.save(CONFIG_MAPPING[name](**options), tmp_path))
    assert len(base.shapes) == 28
    assert all(".language_model." in name for name in base.shapes)


def test_a_target_inside_a_tower_alone_says_so() -> None:
    message = r"names 'fc1', which is only in model\.vision_tower, where text never goes; .*'q_proj'"
    with pytest.raises(BaseError, match=message):
        lora.attach(network("gemma3"), AdapterTable(targets=("q_proj", "fc1")))
    targets = lora.attach(network("gemma3"), AdapterTable(targets=("q_proj",)))  # both parts have some
    assert len(targets) == 2
    message = r"names 'head\.probe', which is only in model\.vision_tower,"
    with pytest.raises(BaseError, match=message):
        lora.attach(network("gemma3"), AdapterTable(target_parameters=("head.probe",)))


def test_a_name_is_within_a_module_only_as_a_whole() -> None:
    assert text_path.within("model.vision.fc", ["model.audio", "model.vision"]) == "model.vision"
    assert text_path.within("model.vision", ["model.vision"]) == "model.vision"
    assert text_path.within("model.vision_head", ["model.vision"]) is None
