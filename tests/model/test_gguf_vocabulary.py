"""A tokenizer in a GGUF file reads text as it does itself."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from benchmarks import gguf_bases
from shepherd.errors import BaseError
from shepherd.model import gguf_file, gguf_vocabulary

TEXTS = (*gguf_bases.TEXTS[:3], "a</s>b <think>c", "  two  spaces", "\u00e9\u4f60 unseen: \U0001f980")


def keys(tokenizer: Any, size: int = gguf_bases.SIZE, **more: Any) -> Any:
    given = {"stop": [tokenizer.eos_token_id], "chat_template": "", "name": "b", **more}
    return gguf_vocabulary.metadata(tokenizer, size, **given)


def written(folder: Path, metadata: Any, architecture: str = "llama") -> Path:
    """A file with this vocabulary and one tensor."""
    one = np.zeros((1, 32), np.float32)
    gguf_file.write(
        folder / "v.gguf", architecture, metadata, {"x": one.shape}, iter([("x", one)]), "float32"
    )
    return folder / "v.gguf"


@pytest.mark.parametrize("split", ["gpt-2", "qwen2", "llama-bpe"])
def test_byte_level_text_is_read_the_same(split: str, tmp_path: Path) -> None:
    tokenizer = gguf_bases.byte_level(split)
    found = keys(tokenizer)
    assert (found["tokenizer.ggml.model"], found["tokenizer.ggml.pre"]) == ("gpt2", split)
    read = AutoTokenizer.from_pretrained(tmp_path, gguf_file=written(tmp_path, found).name)
    for text in TEXTS:
        ids = tokenizer(text, add_special_tokens=False).input_ids
        assert read(text, add_special_tokens=False).input_ids == ids
    assert found["tokenizer.ggml.add_bos_token"] == (split == "llama-bpe")


@pytest.mark.parametrize("front", [True, False])
def test_sentencepiece_text_is_read_the_same(front: bool, tmp_path: Path) -> None:
    tokenizer = gguf_bases.sentencepiece(space_in_front=front)
    found = keys(tokenizer)
    assert found["tokenizer.ggml.add_space_prefix"] == front
    kind = "llama" if front else "gemma2"
    read = AutoTokenizer.from_pretrained(tmp_path, gguf_file=written(tmp_path, found, kind).name)
    for text in (*TEXTS[:2], "Rhine rivers", "caf\u00e9 \u4f60"):
        ids = tokenizer(text, add_special_tokens=False).input_ids
        assert read(text, add_special_tokens=False).input_ids == ids
    kinds = dict(zip(found["tokenizer.ggml.tokens"], found["tokenizer.ggml.token_type"], strict=True))
    assert (kinds["<unk>"], kinds["</s>"], kinds["<0x41>"]) == (2, 3, 6)


@settings(max_examples=60)
@given(text=st.text(alphabet="Rhine rvs\u00e9", min_size=1, max_size=30))
def test_the_best_score_joins_what_the_first_merge_joins(text: str) -> None:
    """SentencePiece's rule, worked by hand: join the two neighbours whose token scores best."""
    tokenizer = SENTENCEPIECE
    score = dict(zip(FOUND["tokenizer.ggml.tokens"], FOUND["tokenizer.ggml.scores"], strict=True))
    parts = list("\u2581" + text.replace(" ", "\u2581"))
    while True:
        joins = [(score[a + b], -n) for n, (a, b) in enumerate(pairwise(parts)) if a + b in score]
        if not joins:
            break
        place = -max(joins)[1]
        parts[place : place + 2] = ["".join(parts[place : place + 2])]
    known = [each for part in parts for each in ([part] if part in score else bytes_of(part))]
    assert tokenizer.convert_ids_to_tokens(tokenizer(text, add_special_tokens=False).input_ids) == known


def bytes_of(part: str) -> list[str]:
    return [f"<0x{byte:02X}>" for byte in part.encode()]


SENTENCEPIECE = gguf_bases.sentencepiece()
FOUND = keys(SENTENCEPIECE)


def test_the_vocabulary_is_as_long_as_the_embedding() -> None:
    found = keys(gguf_bases.byte_level(), size=400)
    tokens, kinds = found["tokenizer.ggml.tokens"], found["tokenizer.ggml.token_type"]
    assert (len(tokens), tokens[-1], kinds[-1]) == (400, "[PAD399]", 5)
    with pytest.raises(BaseError, match="its tokenizer has 370 tokens, and the model 100"):
        keys(gguf_bases.byte_level(), size=100)


def test_what_ends_an_answer_and_a_chat_template_go_along() -> None:
    tokenizer = gguf_bases.byte_level()
    end = tokenizer.convert_tokens_to_ids("<|end|>")
    found = keys(tokenizer, stop=[tokenizer.eos_token_id, end], chat_template="{{ messages }}")
    assert (found["tokenizer.ggml.eos_token_id"], found["tokenizer.ggml.eot_token_id"]) == (2, end)
    assert found["tokenizer.chat_template"] == "{{ messages }}"


def word_level(split: Any, model: Any) -> PreTrainedTokenizerFast:
    made = Tokenizer(model)
    made.pre_tokenizer = split
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token="</s>", unk_token="<unk>")


def test_a_tokenizer_without_a_name_in_llama_cpp_is_refused() -> None:
    words = models.WordLevel({"a": 0, "</s>": 1, "<unk>": 2}, unk_token="<unk>")
    with pytest.raises(BaseError, match=r"base b cannot .* of type WordLevel, and only BPE .*--to merged"):
        keys(word_level(pre_tokenizers.Whitespace(), words))
    letters = models.BPE({"a": 0, "</s>": 1, "<unk>": 2}, [], unk_token="<unk>")
    with pytest.raises(BaseError, match="splits text by a rule that is not verified"):
        keys(word_level(pre_tokenizers.Whitespace(), letters))
    other = gguf_bases.byte_level()
    other.backend_tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    with pytest.raises(BaseError, match="splits text by a rule"):
        keys(other)
    few = models.BPE({"a": 0, "aa": 1, "aaa": 2}, [("a", "a"), ("a", "aa")], byte_fallback=True)
    with pytest.raises(BaseError, match="not those that SentencePiece's scores"):
        keys(word_level(None, few))
