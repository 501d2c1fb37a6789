"""Turn a GGUF file of the LLaMA architecture into a folder for transformers, with its tokenizer.

The inverse of the exporter for this architecture, for a base that a package carries as GGUF. All is from the
file but for how text is split before byte-level BPE, which the file only names. Quantised matrices become
float32 of the same numbers, so the weights are those of the quantised model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast

from shepherd.errors import BaseError
from shepherd.model import files, gguf_architectures, gguf_export, gguf_file
from shepherd.model.gguf_vocabulary import CONTROL, USER_DEFINED

WEIGHTS = "model.safetensors"


def _bytes() -> Any:
    return pre_tokenizers.ByteLevel(add_prefix_space=False)


SPLITS: Mapping[str, Callable[[], Any]] = {
    "gpt-2": _bytes,
    "smollm": lambda: pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), _bytes()]),
}
"""llama.cpp's name for a way to split text -> the steps; see `gguf_vocabulary` for the other direction."""


ROLES = {"bos": "bos", "eos": "eos", "pad": "padding"}
"""What transformers calls a special token -> what GGUF does."""


def convert(source: Path, folder: Path) -> None:
    """Write the model and the tokenizer of the GGUF file `source` into `folder`, each file whole.

    Raises:
        BaseError: it is no GGUF file, is of another architecture, or has another kind of tokenizer.
        FolderError: the folder cannot be written.
    """
    keys, tensors = gguf_file.read(source)
    kind = keys.get("general.architecture")
    if kind != "llama":
        raise BaseError(f"{source} is of the architecture {kind}, and only llama is read; use its own folder")
    if gguf_export.ROPE_FACTORS in tensors:
        raise BaseError(f"{source} scales its positions, which is not read; use its own folder")
    tokenizer = tokenizer_of(keys, source)
    config = _config(keys)
    with torch.device("meta"):
        names = list(AutoModelForCausalLM.from_config(config).state_dict())
    stored = gguf_file.names("llama", config.num_hidden_layers, names)
    if "output.weight" not in tensors:
        config.tie_word_embeddings = True
        names = [name for name in names if name != "lm_head.weight"]
    lacking = [name for name in names if stored.get(name) not in tensors]
    if lacking:
        raise BaseError(f"{source} lacks the weights of {lacking[0]}; download it again")
    architecture = gguf_architectures.VERIFIED["llama"]
    state = {}
    for name in names:
        values = tensors[stored[name]]()
        rows = architecture.rows(name, config)
        if rows is not None:  # row `rows[i]` is stored as row i
            values = values[np.argsort(rows)]
        state[name] = torch.from_numpy(np.array(values))
    with files.replacing(folder) as scratch:
        config.save_pretrained(scratch)
        tokenizer.save_pretrained(scratch)
        save_file(state, scratch / WEIGHTS, metadata={"format": "pt"})


def _config(keys: Mapping[str, Any]) -> LlamaConfig:
    def of(name: str, default: Any = None) -> Any:
        return keys.get(f"llama.{name}", default)

    width, heads = of("embedding_length"), of("attention.head_count")
    special = {role: keys.get(f"tokenizer.ggml.{there}_token_id") for role, there in ROLES.items()}
    return LlamaConfig(
        architectures=["LlamaForCausalLM"],
        vocab_size=len(keys["tokenizer.ggml.tokens"]),
        hidden_size=width,
        intermediate_size=of("feed_forward_length"),
        num_hidden_layers=of("block_count"),
        num_attention_heads=heads,
        num_key_value_heads=of("attention.head_count_kv", heads),
        head_dim=of("attention.key_length", width // heads),
        max_position_embeddings=of("context_length"),
        rms_norm_eps=round(float(of("attention.layer_norm_rms_epsilon")), 9),  # it is kept as float32
        rope_parameters={"rope_type": "default", "rope_theta": of("rope.freq_base", 10_000.0)},
        tie_word_embeddings=False,
        dtype="float32",
        **{f"{role}_token_id": place for role, place in special.items()},
    )


def tokenizer_of(keys: Mapping[str, Any], source: Path) -> PreTrainedTokenizerFast:
    """The tokenizer of a GGUF file's metadata.

    Raises:
        BaseError: it is no byte-level BPE, or splits text by a rule that is not known here.
    """
    split = str(keys.get("tokenizer.ggml.pre"))
    if keys.get("tokenizer.ggml.model") != "gpt2" or split not in SPLITS:
        raise BaseError(f"{source} has a tokenizer of a kind that is not read ({split}); use its own folder")
    tokens, kinds = keys["tokenizer.ggml.tokens"], keys["tokenizer.ggml.token_type"]
    merges = [tuple(each.split(" ")) for each in keys["tokenizer.ggml.merges"]]
    made = Tokenizer(models.BPE({token: place for place, token in enumerate(tokens)}, merges))
    made.pre_tokenizer, made.decoder = SPLITS[split](), decoders.ByteLevel()
    named = list(zip(tokens, kinds, strict=True))
    made.add_special_tokens(
        [AddedToken(token, special=True, normalized=False) for token, kind in named if kind == CONTROL]
    )
    made.add_tokens([AddedToken(token, normalized=False) for token, kind in named if kind == USER_DEFINED])
    roles = {**ROLES, "unk": "unknown"}
    places = {role: keys.get(f"tokenizer.ggml.{there}_token_id") for role, there in roles.items()}
    return PreTrainedTokenizerFast(
        tokenizer_object=made,
        clean_up_tokenization_spaces=False,
        model_max_length=keys["llama.context_length"],
        chat_template=keys.get("tokenizer.chat_template"),
        **{f"{role}_token": tokens[place] for role, place in places.items() if place is not None},
    )
