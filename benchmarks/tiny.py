"""Tiny configurations of every causal language model that transformers knows, and random weights for them.

Two layers, a width of 64, 300 tokens, windows and chunks of 16: every border is crossed by short examples.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedTokenizerFast

VOCABULARY = 300
_KEYS = {
    300: "vocab_size vocab_size_per_layer_input",
    256: "max_position_embeddings n_positions n_ctx max_seq_len max_sequence_length max_target_positions",
    96: "intermediate_size n_inner ffn_dim d_ff decoder_ffn_dim encoder_ffn_dim ffn_hidden_size dim_ff"
    " shared_intermediate_size",
    64: "hidden_size n_embd d_model hidden_dim embed_dim width dim embedding_size lru_width emb_dim",
    32: "moe_intermediate_size shared_expert_intermediate_size expert_ffn_hidden_size moe_ffn_hidden_size"
    " moe_shared_expert_intermediate_size q_lora_rank qk_head_dim index_head_dim image_size",
    16: "index_n_heads"
    " sliding_window attention_chunk_size window_size attention_window_size sliding_window_size index_topk"
    " head_dim qk_nope_head_dim qk_rope_head_dim v_head_dim kv_lora_rank global_head_dim linear_key_head_dim"
    " linear_value_head_dim mamba_d_head mamba_head_dim hidden_size_per_layer_input",
    8: "state_size mamba_d_state ssm_state_size mamba_n_heads mamba_num_heads rotary_dim patch_size",
    4: "num_attention_heads n_head n_heads num_heads decoder_attention_heads encoder_attention_heads"
    " num_key_value_heads num_kv_heads n_kv_heads n_head_kv num_experts num_local_experts n_routed_experts"
    " moe_num_experts linear_num_key_heads linear_num_value_heads",
    2: "num_hidden_layers n_layer n_layers num_layers decoder_layers encoder_layers pad_token_id"
    " num_experts_per_tok moe_topk moe_top_k moe_k num_experts_per_token top_k_experts",
    1: "n_group topk_group first_k_dense_replace n_shared_experts num_shared_experts eos_token_id",
    0: "bos_token_id",
}
SIZES = {key: size for size, keys in _KEYS.items() for key in keys.split()}
WHERE_NONE = {  # set though the default is none
    "sliding_window", "attention_chunk_size", "head_dim", "num_key_value_heads", "n_routed_experts",
    "bos_token_id", "eos_token_id", "pad_token_id",
}  # fmt: skip
DELTA_NETS = ("qwen3_next", "qwen3_5_text", "qwen3_5_moe_text")
OWN: dict[str, dict[str, Any]] = {
    "blt": {"encoder_hash_byte_group_vocab": 64},
    "bailing_hybrid": {"linear_head_dim": 16, "linear_num_heads": 4, "num_expert_group": 1},
    "cohere_compass_text": {
        "rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 10000.0}}
    },
    "deepseek_v2": {"num_experts_per_tok": 2},
    "deepseek_v4": {"compress_rates": {"compressed_sparse_attention": 4, "heavily_compressed_attention": 16}},
    "dots1": {"num_experts_per_tok": 2, "n_shared_experts": 1},
    "dbrx": {
        "ffn_config": {"ffn_hidden_size": 96, "moe_num_experts": 4, "moe_top_k": 2},
        "attn_config": {"kv_n_heads": 4, "clip_qkv": 8.0, "rope_theta": 10000.0},
    },
    "falcon_h1": {"mamba_d_ssm": 128, "mamba_n_heads": 8, "mamba_d_head": 16, "mamba_n_groups": 1},
    "gemma3n_text": {
        "num_kv_shared_layers": 0,
        "layer_types": ["sliding_attention", "full_attention"],
        "laurel_rank": 8,
        "activation_sparsity_pattern": [0.0, 0.0],
    },
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "bert-generation": {"is_decoder": True},
    "lfm2": {"layer_types": ["conv", "full_attention"]},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"]},
    "llama4_text": {"no_rope_layers": [1, 0]},
    "mamba2": {"num_heads": 8, "head_dim": 16, "n_groups": 1},
    "mimo_v2_flash": {"num_key_value_heads": 2},
    "bamba": {"attn_layer_indices": [1]},
    "granitemoehybrid": {"layer_types": ["mamba", "attention"]},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    **{kind: {"layer_types": ["linear_attention", "full_attention"]} for kind in DELTA_NETS},
    "moshi": {"audio_vocab_size": 300},
    "qwen2_moe": {"use_sliding_window": True, "max_window_layers": 1},
    "reformer": {"is_decoder": True, "axial_pos_embds": False},
    "zamba": {"num_hidden_layers": 6, "layer_types": ["mamba", "mamba", "hybrid"] * 2},
    "zamba2": {"num_hidden_layers": 6, "layer_types": ["mamba", "mamba", "hybrid"] * 2},
    "zaya": {"num_experts_per_tok": 1},
}


def config(kind: str, **more: Any) -> Any:
    """A tiny configuration of this model type."""
    made = CONFIG_MAPPING[kind]
    return made(**{**_small(made), **OWN.get(kind, {}), **more})


def _small(kind: Any) -> dict[str, Any]:
    default = kind().to_dict()
    found: dict[str, Any] = {
        key: size
        for key, size in SIZES.items()
        if key in default and (type(default[key]) is int or (default[key] is None and key in WHERE_NONE))
    }
    for name, part in getattr(kind, "sub_configs", {}).items():
        known = default.get(name)
        if not isinstance(known, dict):
            continue
        of = CONFIG_MAPPING[known["model_type"]] if known.get("model_type") in CONFIG_MAPPING else part
        if getattr(of, "model_type", ""):
            found[name] = {**_small(of), **OWN.get(of.model_type, {}), "model_type": of.model_type}
    return found


def save(made: Any, folder: Path, seed: int = 0) -> Path:
    """A random model of a configuration, with a word-level tokenizer beside it.

    Matrices are drawn so that states keep their size, since the usual 0.02 would hide what attention does.
    """
    torch.manual_seed(seed)
    network = AutoModelForCausalLM.from_config(made, dtype=torch.float32)
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, parameter.shape[-1] ** -0.5)
            else:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    network.save_pretrained(folder)
    words = {"<s>": 0, "</s>": 1, "<pad>": 2, "<unk>": 3, **{f"w{i}": i for i in range(4, VOCABULARY)}}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>", unk_token="<unk>"
    ).save_pretrained(folder)
    return folder
