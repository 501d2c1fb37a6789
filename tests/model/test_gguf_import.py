"""A GGUF file as a folder for transformers: the logits and the tokens of the model that it was written of."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from benchmarks import gguf_bases
from shepherd.errors import BaseError
from shepherd.model import gguf_file, gguf_import
from tests.model import gguf_writing


@pytest.mark.parametrize(("config", "split"), [("llama", "smollm"), ("llama, tied", "gpt-2")])
def test_what_was_written_as_gguf_comes_back(config: str, split: str, tmp_path: Path) -> None:
    tokenizer = gguf_bases.byte_level(split)
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    before = gguf_bases.save(gguf_bases.CONFIGS[config], tmp_path / "before", tokenizer)
    gguf_import.convert(gguf_writing.written(before, tmp_path / "gguf"), tmp_path / "after")
    ids = torch.arange(5, 40)[None]
    ours, theirs = (
        AutoModelForCausalLM.from_pretrained(place, dtype=torch.float32).eval()
        for place in (tmp_path / "after", before)
    )
    with torch.no_grad():
        assert torch.equal(ours(ids).logits, theirs(ids).logits)
    assert ours.config.tie_word_embeddings == theirs.config.tie_word_embeddings
    new, old = (AutoTokenizer.from_pretrained(place) for place in (tmp_path / "after", before))
    for text in (*gguf_bases.TEXTS, "12345 <s>x</s> <think>", "  two  spaces\n\n"):
        assert new(text).input_ids == old(text).input_ids
        assert new.decode(new(text).input_ids) == old.decode(old(text).input_ids)
    assert new.chat_template == old.chat_template
    assert (new.bos_token, new.eos_token, new.pad_token) == (old.bos_token, old.eos_token, old.pad_token)


def keys(**changed: Any) -> dict[str, Any]:
    known = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "smollm",
        "tokenizer.ggml.tokens": ["a"],
        "tokenizer.ggml.token_type": [1],
        "tokenizer.ggml.merges": [],
        "llama.context_length": 8,
    }
    return {**known, **changed}


def test_what_is_not_known_is_refused(tmp_path: Path) -> None:
    assert gguf_import.tokenizer_of(keys(), tmp_path)
    for changed in ({"tokenizer.ggml.model": "llama"}, {"tokenizer.ggml.pre": "qwen2"}):
        with pytest.raises(BaseError, match="tokenizer of a kind that is not read"):
            gguf_import.tokenizer_of(keys(**changed), tmp_path)
    other = gguf_bases.save(gguf_bases.CONFIGS["qwen2"], tmp_path / "qwen2", gguf_bases.byte_level("qwen2"))
    with pytest.raises(BaseError, match="of the architecture qwen2, and only llama is read"):
        gguf_import.convert(gguf_writing.written(other, tmp_path / "gguf"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kept", [0, 3, 200, 20_000])
def test_a_file_that_was_cut_is_named(kept: int, tmp_path: Path) -> None:
    base = gguf_bases.save(gguf_bases.CONFIGS["llama"], tmp_path / "base", gguf_bases.byte_level("smollm"))
    whole = gguf_writing.written(base, tmp_path / "gguf")
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(whole.read_bytes()[:kept])
    with pytest.raises(BaseError, match=r"cut\.gguf cannot be read as GGUF"):
        gguf_import.convert(cut, tmp_path / "out")


def test_quantised_matrices_become_their_numbers(tmp_path: Path) -> None:
    base = gguf_bases.save(gguf_bases.CONFIGS["llama"], tmp_path / "base", gguf_bases.byte_level("smollm"))
    gguf_import.convert(gguf_writing.written(base, tmp_path / "gguf", "q8_0"), tmp_path / "out")
    exact, near = (
        AutoModelForCausalLM.from_pretrained(place, dtype=torch.float32).state_dict()
        for place in (base, tmp_path / "out")
    )
    for name, tensor in exact.items():  # half a step, and what the scale loses in float16
        step = tensor.abs().amax(-1, keepdim=True) / 127 if tensor.ndim == 2 else torch.full((1,), 1e-9)
        assert ((near[name] - tensor).abs() <= 0.6 * step).all(), name
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == "float32"
    assert gguf_file.read(tmp_path / "gguf" / "model.gguf")[0]["general.architecture"] == "llama"
