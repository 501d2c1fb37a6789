"""Tokenizers made here, and paths into the shared folder."""

import os
from pathlib import Path

import pytest

TEXT = [
    "### Instruction:\nName a bird.\n\n### Input:\nSome text about birds.\n\n### Response:\nA heron.",
    "A chat between a curious user and an assistant. USER: Hello ASSISTANT: Hi there",
    "### Response:\nHeron and 12 more: café, 雨.\n\n",
    "Below is an instruction that describes a task. Write a response.",
] * 3

SHARED = Path(os.environ.get("SHEPHERD_SHARED", Path(__file__).parents[3] / "shared"))


def shared(*parts):
    """A path in the shared folder, or a skip that says what is missing."""
    path = SHARED.joinpath(*parts)
    if not path.exists():
        pytest.skip(f"{path} is missing; set SHEPHERD_SHARED")
    return path


def made(*, split=True, first="none", ends=(), merges=300):
    """A tokenizer trained on TEXT: byte-level with `split`, else one that merges over any border."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.BPE(byte_fallback=not split, unk_token=None if split else "<unk>"))
    alphabet = [f"<0x{byte:02X}>" for byte in range(256)]
    if split:
        core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        core.decoder = decoders.ByteLevel()
    else:
        core.normalizer = normalizers.Replace(" ", "▁")
        core.decoder = decoders.Sequence(
            [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
        )
        if first == "always":  # as Llama 2 does
            core.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
            core.normalizer = None
    special = ["<|endoftext|>", "<s>", "<unk>", "<|im_start|>", "<|im_end|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=len(special) + 256 + merges,
        special_tokens=special + ([] if split else alphabet),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet() if split else [],
        show_progress=False,
    )
    core.train_from_iterator(TEXT, trainer)
    if ends:
        left, right = ends
        pattern = " ".join(part for part in (left, "$A", right) if part)
        used = [(part, core.token_to_id(part)) for part in ends if part]
        core.post_processor = processors.TemplateProcessing(single=pattern, special_tokens=used)
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<|endoftext|>")
