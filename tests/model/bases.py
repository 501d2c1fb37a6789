"""Tiny random bases of the architectures that people use, and examples for them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers as hf
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from shepherd.core import Adapter, Algorithm, Broadcast
from shepherd.data.tokens import Tokens
from shepherd.model import base as bases
from shepherd.model.base import Base
from shepherd.settings import AdapterTable, ModelTable, TuningTable
from shepherd.training import tune

VOCABULARY = 61
_COMMON = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
CONFIGS = {
    "llama": hf.LlamaConfig(**_COMMON, num_key_value_heads=2),
    "mistral": hf.MistralConfig(**_COMMON, num_key_value_heads=2, sliding_window=5),
    "qwen2": hf.Qwen2Config(**_COMMON, num_key_value_heads=2),
    "qwen3": hf.Qwen3Config(**_COMMON, num_key_value_heads=2, head_dim=8),
    "gemma": hf.GemmaConfig(**_COMMON, num_key_value_heads=1, head_dim=8),
    "gemma2": hf.Gemma2Config(**_COMMON, num_key_value_heads=2, head_dim=8, sliding_window=5),
    "phi": hf.PhiConfig(**_COMMON),
    "phi3": hf.Phi3Config(**_COMMON),
    "gpt_neox": hf.GPTNeoXConfig(**_COMMON),
    "gpt2": hf.GPT2Config(
        vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=4, n_positions=64, bos_token_id=1, eos_token_id=2
    ),
}
_GROUPED = {**_COMMON, "num_key_value_heads": 2, "num_experts_per_tok": 2}
MIXTURES = {
    "mixtral": hf.MixtralConfig(**_GROUPED, num_local_experts=4),
    "qwen3_moe": hf.Qwen3MoeConfig(**_GROUPED, head_dim=8, num_experts=4, moe_intermediate_size=24),
    "olmoe": hf.OlmoeConfig(**_GROUPED, num_experts=4),
    # its matrices are transposed, and have biases
    "gpt_oss": hf.GptOssConfig(
        **_GROUPED,
        head_dim=8,
        num_local_experts=4,
        sliding_window=8,
        rope_parameters={"rope_type": "default", "rope_theta": 1e4},
    ),
}
"""Experts stacked in parameters."""
STACKS = ("mlp.experts.gate_up_proj", "mlp.experts.down_proj")


def save(config: hf.PretrainedConfig, folder: Path, seed: int = 0) -> Path:
    """A random model of this configuration with a word-level tokenizer beside it."""
    torch.manual_seed(seed)
    model = hf.AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    model.save_pretrained(folder)
    words = {"<pad>": 0, "<s>": 1, "</s>": 2, "<unk>": 3, **{f"w{i}": i for i in range(4, VOCABULARY)}}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>", unk_token="<unk>"
    ).save_pretrained(folder)
    return folder


def load(folder: Path, **adapter: object) -> bases.Base:
    return bases.load(
        ModelTable(base=str(folder), dtype="float32"),
        AdapterTable.model_validate({"rank": 3, "alpha": 6, **adapter}),
        device="cpu",
    )


def tokens(seed: int, lengths: list[int]) -> Tokens:
    """Random examples; about the last half of each is trained."""
    rng = np.random.default_rng(seed)
    ids = [rng.integers(4, VOCABULARY, n).astype(np.int32) for n in lengths]
    trained = [np.arange(n) >= n // 2 for n in lengths]
    return Tokens(
        ids=np.concatenate(ids), loss_mask=np.concatenate(trained), offsets=np.cumsum([0, *lengths])
    )


def beginning_alike(data: Tokens, prefix: int) -> Tokens:
    """The data with the same `prefix` tokens in front of each example."""
    shared = np.random.default_rng(prefix).integers(4, VOCABULARY, prefix).astype(np.int32)
    pairs = [data.example(i) for i in range(len(data))]
    return Tokens(
        ids=np.concatenate([part for ids, _ in pairs for part in (shared, ids)]),
        loss_mask=np.concatenate(
            [part for _, trained in pairs for part in (np.zeros(prefix, bool), trained)]
        ),
        offsets=np.cumsum([0, *(prefix + len(ids) for ids, _ in pairs)]),
    )


def random_adapter(base: bases.Base, seed: int, size: float = 0.1) -> Adapter:
    rng = np.random.default_rng(seed)
    return Adapter({name: rng.normal(0, size, shape) for name, shape in base.shapes.items()})


def tuned(
    base: Base,
    broadcast: Broadcast,
    algorithm: Algorithm,
    visits: Sequence[tune.Visit],
    tuning: TuningTable,
    *,
    watch: Callable[[tune.Progress], None] = lambda progress: None,
    micro_batch_tokens: int = 4096,
    **more: Any,
) -> list[tune.TuningResult]:
    """What a job of these parts makes."""
    job = tune.Job(
        broadcast=broadcast,
        algorithm=algorithm,
        visits=visits,
        tuning=tuning,
        micro_batch_tokens=micro_batch_tokens,
        **more,
    )
    return tune.tune(base, job, watch)
