"""Tiny random bases of the architectures that are written as GGUF, with tokenizers that llama.cpp knows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers as hf
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

TEXTS = [
    "The river Rhine is 1233 km long, and the Elbe 1094 km.",
    "It's a river; they're rivers! Isn't the Rhine longer than the Oder?\n\n  Yes: 12, 345 and 6789.",
    "Naive café, naïve cafe — über-long \u4f60\u597d words\tand 🚀 signs...",
] * 3
SPECIAL = ("<pad>", "<s>", "</s>", "<|end|>")
SIZE = 384
_COMMON: dict[str, Any] = {
    "vocab_size": SIZE,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10_000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
CONFIGS: dict[str, hf.PretrainedConfig] = {
    "gemma2": hf.Gemma2Config(**_COMMON, head_dim=32, query_pre_attn_scalar=32, sliding_window=8),
    "gemma3_text": hf.Gemma3TextConfig(
        **{**_COMMON, "num_hidden_layers": 6}, head_dim=32, query_pre_attn_scalar=32, sliding_window=8
    ),
    "gpt2": hf.GPT2Config(
        **{"vocab_size": SIZE, "n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 128},
        bos_token_id=1,
        eos_token_id=2,
    ),
    "llama": hf.LlamaConfig(**_COMMON),
    "llama, tied": hf.LlamaConfig(**_COMMON, tie_word_embeddings=True),
    "llama, llama3 positions": hf.LlamaConfig(**_COMMON, rope_parameters=LLAMA3),
    "mistral": hf.MistralConfig(**_COMMON, sliding_window=None),
    "qwen2": hf.Qwen2Config(**_COMMON),
    "qwen3": hf.Qwen3Config(**_COMMON, head_dim=128),
}


def byte_level(split: str = "gpt-2") -> PreTrainedTokenizerFast:
    """A byte-level BPE trained on the texts, which splits text as the named family does."""
    words = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
    rest = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    bytes_alone = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    plain = pre_tokenizers.ByteLevel(add_prefix_space=False)
    known: dict[str, list[Any]] = {
        "gpt-2": [plain],
        "smollm": [pre_tokenizers.Digits(individual_digits=True), plain],
        "qwen2": [pre_tokenizers.Split(Regex(words + r"\p{N}" + rest), "isolated"), bytes_alone],
        "llama-bpe": [pre_tokenizers.Split(Regex(words + r"\p{N}{1,3}" + rest), "isolated"), bytes_alone],
    }
    steps = known[split]
    made = Tokenizer(models.BPE(ignore_merges=split == "llama-bpe"))
    made.pre_tokenizer = steps[0] if len(steps) == 1 else pre_tokenizers.Sequence(steps)
    made.decoder = decoders.ByteLevel()
    made.normalizer = normalizers.NFC() if split == "qwen2" else None
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=SIZE - 8, special_tokens=list(SPECIAL), initial_alphabet=alphabet, show_progress=False
    )
    made.train_from_iterator(TEXTS, trainer)
    made.add_tokens([AddedToken("<think>", special=False, normalized=False)])
    return _fast(made, bos=split == "llama-bpe")


def sentencepiece(*, space_in_front: bool = True) -> PreTrainedTokenizerFast:
    """A BPE as SentencePiece has it: pieces in the order of their scores, and bytes for what it lacks."""
    marked = [text.replace(" ", "\u2581") for text in TEXTS]
    learner = Tokenizer(models.BPE())
    learner.pre_tokenizer = pre_tokenizers.Split("\u2581", "merged_with_next")
    learner.train_from_iterator(marked, trainers.BpeTrainer(vocab_size=SIZE - 270, show_progress=False))
    learned = sorted(learner.get_vocab(), key=learner.get_vocab().__getitem__)
    pieces = ["<unk>", *SPECIAL[:3], *(f"<0x{byte:02X}>" for byte in range(256)), *learned]
    pieces = list(dict.fromkeys(pieces))[:SIZE]
    vocabulary = {piece: place for place, piece in enumerate(pieces)}
    merges = [
        (piece[:cut], piece[cut:])
        for piece in learned
        for cut in range(1, len(piece))
        if piece in vocabulary and piece[:cut] in vocabulary and piece[cut:] in vocabulary
    ]
    made = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    replaced = normalizers.Replace(" ", "\u2581")
    front = [normalizers.Prepend("\u2581")] if space_in_front else []
    made.normalizer = normalizers.Sequence([*front, replaced])
    made.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    made.add_special_tokens([AddedToken(each, normalized=False) for each in ("<unk>", *SPECIAL[:3])])
    return _fast(made, bos=True, unk_token="<unk>")


def _fast(made: Tokenizer, *, bos: bool, **more: str) -> PreTrainedTokenizerFast:
    if bos:
        place = made.token_to_id("<s>")
        made.post_processor = TemplateProcessing(
            single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", place)]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="<pad>", bos_token="<s>", eos_token="</s>", **more
    )


def save(config: hf.PretrainedConfig, folder: Path, tokenizer: PreTrainedTokenizerFast | None = None) -> Path:
    """A random model whose attention and norms matter, with a tokenizer beside it."""
    torch.manual_seed(0)
    model = hf.AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    model.save_pretrained(folder)
    (tokenizer or byte_level()).save_pretrained(folder)
    return folder
