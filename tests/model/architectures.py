"""Tiny configurations of the architectures whose targets PEFT rewrites, or could."""

from __future__ import annotations

from typing import Any

from transformers import CONFIG_MAPPING, PretrainedConfig

_COMMON = {
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
_EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 16}
_ROUTED = {
    **_EXPERTS,
    "n_routed_experts": 4,
    "n_shared_experts": 1,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 1,
    "head_dim": 8,
}
_LATENT = {
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 8,
    "v_head_dim": 8,
    "num_key_value_heads": 4,
}
_DEEPSEEK = {**_ROUTED, **_LATENT}
_SHARED = {**_EXPERTS, "num_experts": 4, "num_shared_experts": 1, "head_dim": 8}

REWRITTEN: dict[str, dict[str, Any]] = {
    "afmoe": {**_SHARED, "num_dense_layers": 1},
    "beam": {},
    "cohere2_moe": {**_SHARED, "first_k_dense_replace": 1},
    "deepseek_v2": {**_DEEPSEEK, "topk_method": "greedy"},
    "deepseek_v3": _DEEPSEEK,
    "dots1": _ROUTED,
    "ernie4_5_moe": {
        "moe_num_experts": 4,
        "moe_k": 2,
        "moe_intermediate_size": 16,
        "moe_num_shared_experts": 1,
        "moe_layer_start_index": 1,
    },
    "exaone_moe": {**_SHARED, "first_k_dense_replace": 1, "n_group": 1, "topk_group": 1, "sliding_window": 4},
    "glm4_moe": _ROUTED,
    "glm4_moe_lite": _DEEPSEEK,
    "hunyuan_v1_moe": {"num_experts": 4, "moe_topk": 2, "head_dim": 8},
    "laguna": {**_EXPERTS, "num_experts": 4, "shared_expert_intermediate_size": 16, "head_dim": 8},
    "longcat_flash": {
        **_LATENT,
        "ffn_hidden_size": 48,
        "expert_ffn_hidden_size": 16,
        "n_routed_experts": 4,
        "zero_expert_num": 2,
        "moe_topk": 2,
        "num_layers": 2,
        "head_dim": 8,
    },
    "qwen3_moe": {**_EXPERTS, "num_experts": 4, "head_dim": 8, "mlp_only_layers": [0]},
    "solar_open": _ROUTED,
}
USUAL: dict[str, dict[str, Any]] = {
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "qwen2_moe": {**_EXPERTS, "num_experts": 4, "shared_expert_intermediate_size": 16},
}


def config(kind: str) -> PretrainedConfig:
    return CONFIG_MAPPING[kind](**{**_COMMON, **{**REWRITTEN, **USUAL}[kind]})
