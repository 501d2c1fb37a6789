"""A base of LLaMA's 1B shape with random weights, and examples as long as Dolly's, made on the spot.

For a machine with CUDA and nothing to download: speed does not depend on what the weights are.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer, models
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast
from transformers.utils import logging as transformers_logging

from shepherd.core import seed_for
from shepherd.data.tokens import Tokens

SHAPE = {
    "vocab_size": 32000,
    "hidden_size": 2048,
    "intermediate_size": 5632,
    "num_hidden_layers": 22,
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
    "max_position_embeddings": 2048,
}
SHAPE_7B = {
    **SHAPE,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_key_value_heads": 32,
}
SMALL = {
    **SHAPE,
    "vocab_size": 256,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_key_value_heads": 32,
}
FIRST_WORD = 3  # after padding, begin and end

# The deciles of the tokens of Dolly's examples in the ten ready-made clients: Alpaca template, at most 384
# tokens, a vocabulary of 8,192 pieces (so a little longer than LLaMA's 32,000 would give).
PROMPT_DECILES = (45, 51, 54, 56, 59, 63, 74, 116, 230, 310, 382)
RESPONSE_DECILES = (2, 14, 22, 33, 45, 60, 79, 103, 139, 214, 337)
MOST_TOKENS = 384


def write(folder: Path, seed: int, shape: Mapping[str, int] = SHAPE) -> Path:
    """The base and a tokenizer beside it, which only has to be there: examples are made as tokens."""
    transformers_logging.disable_progress_bar()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    network(seed, shape, device, torch.bfloat16).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


def network(seed: int, shape: Mapping[str, int], device: torch.device, dtype: torch.dtype) -> Any:
    """A base of this shape with random weights."""
    torch.manual_seed(seed)
    config = LlamaConfig(**shape, bos_token_id=1, eos_token_id=2, pad_token_id=0, tie_word_embeddings=False)
    with device:
        return AutoModelForCausalLM.from_config(config, dtype=dtype)


def tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer that knows only the special tokens."""
    words = Tokenizer(models.WordLevel({"<pad>": 0, "<s>": 1, "</s>": 2}, unk_token="<pad>"))
    return PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", bos_token="<s>", eos_token="</s>"
    )


def clients(count: int, examples: int, shape: Mapping[str, int], seed: int) -> dict[str, Tokens]:
    """`count` clients of `examples` examples each, of random tokens."""
    return {
        f"client_{k:02d}": _tokens(examples, shape["vocab_size"], seed_for(seed, "client", k))
        for k in range(count)
    }


def _tokens(examples: int, vocabulary: int, seed: int) -> Tokens:
    rng = np.random.default_rng(seed)
    responses = _drawn(rng, RESPONSE_DECILES, examples)
    prompts = np.minimum(_drawn(rng, PROMPT_DECILES, examples), MOST_TOKENS - responses)
    lengths = prompts + responses
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    trained = np.concatenate([np.arange(n) >= p for n, p in zip(lengths, prompts, strict=True)])
    ids = rng.integers(FIRST_WORD, vocabulary, offsets[-1]).astype(np.int32)
    return Tokens(ids=ids, loss_mask=trained, offsets=offsets)


def _drawn(rng: np.random.Generator, deciles: tuple[int, ...], count: int) -> NDArray[np.int64]:
    """Draw from the distribution with these deciles, interpolated linearly."""
    return np.interp(rng.uniform(0, 10, count), np.arange(11), deciles).astype(np.int64)
