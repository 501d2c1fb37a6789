"""A tokenizer as GGUF metadata: byte-level BPE by its merges, SentencePiece's BPE by its tokens' scores.

llama.cpp splits text before byte-level BPE by a rule that the file only names. SentencePiece's BPE joins the
two neighbours whose token has the highest score; a fast tokenizer joins those that come first in its list
of merges. With minus the place of a token's first merge as its score, both join the same.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from shepherd.errors import BaseError
from shepherd.model.gguf_file import Value

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
"""Kinds of tokens, as GGUF numbers them."""
SPACE = "\u2581"
"""SentencePiece's mark of a space."""
ADDED_SCORE = -1000.0
"""Score of a token that no merge makes, as in llama.cpp's own converter."""

_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_WHOLE = ("ByteLevel", True)
_SPLITS: Mapping[tuple[tuple[str, Any], ...], tuple[str, bool]] = {
    (_WHOLE,): ("gpt-2", False),
    (("Digits", True), _WHOLE): ("smollm", False),
    (("Split", _WORDS + r"\p{N}" + _REST), ("ByteLevel", False)): ("qwen2", False),
    (("Split", _WORDS + r"\p{N}{1,3}" + _REST), ("ByteLevel", False)): ("llama-bpe", True),
}
"""Steps that split text -> llama.cpp's name for them, and whether a known word is then taken whole."""


def metadata(
    tokenizer: Any, size: int, stop: Sequence[int], chat_template: str, name: str
) -> Mapping[str, Value]:
    """The keys below `tokenizer.` for a base of `size` tokens.

    Args:
        stop: tokens that end an answer.
        chat_template: a Jinja template; "" for none.
        name: name of the base, for messages.

    Raises:
        BaseError: the tokenizer is of another kind, or splits text by a rule that has no name in llama.cpp.
    """
    whole = json.loads(tokenizer.backend_tokenizer.to_str())
    model = whole["model"]
    if model["type"] != "BPE":
        raise _unknown(name, f"its tokenizer is of type {model['type']}, and only BPE is verified")
    found = {**model["vocab"], **{each["content"]: each["id"] for each in whole["added_tokens"]}}
    if max(found.values()) >= size:
        raise _unknown(name, f"its tokenizer has {max(found.values()) + 1} tokens, and the model {size}")
    by_id = {place: token for token, place in found.items()}
    tokens = [by_id.get(place, f"[PAD{place}]") for place in range(size)]
    kinds = [NORMAL if place in by_id else UNUSED for place in range(size)]
    for each in whole["added_tokens"]:
        kinds[each["id"]] = CONTROL if each["special"] else USER_DEFINED
    own = _sentencepiece if model.get("byte_fallback") else _byte_level
    keys = {
        **own(whole, tokens, kinds, tokenizer, name),
        **_special(tokenizer, stop),
        "ggml.token_type": kinds,
        "chat_template": chat_template,
    }
    return {f"tokenizer.{key}": value for key, value in keys.items()}


def _byte_level(
    whole: Mapping[str, Any], tokens: list[str], kinds: list[int], tokenizer: Any, name: str
) -> dict[str, Value]:
    model, before = whole["model"], whole["pre_tokenizer"] or {}
    steps = tuple(_step(each) for each in before.get("pretokenizers", [before]))
    normaliser = (whole["normalizer"] or {}).get("type")
    split, whole_words = _SPLITS.get(steps, ("", False))
    if not split or normaliser not in (None, "NFC") or bool(model.get("ignore_merges")) != whole_words:
        raise _unknown(name, "its tokenizer splits text by a rule that is not verified in llama.cpp")
    return {
        "ggml.model": "gpt2",
        "ggml.pre": split,
        "ggml.tokens": tokens,
        "ggml.merges": [" ".join(pair) for pair in _pairs(model)],
    }


def _step(step: Mapping[str, Any]) -> tuple[str, Any]:
    """One step of splitting text, as `_SPLITS` names it; what differs in any other key has no name."""
    match step:
        case {"type": "ByteLevel", "add_prefix_space": False, "use_regex": bool(splits)}:
            return "ByteLevel", splits
        case {"type": "Digits", "individual_digits": bool(each)}:
            return "Digits", each
        case {"type": "Split", "pattern": {"Regex": str(rule)}, "behavior": "Isolated", "invert": False}:
            return "Split", rule
    return str(step.get("type")), None


def _sentencepiece(
    whole: Mapping[str, Any], tokens: list[str], kinds: list[int], tokenizer: Any, name: str
) -> dict[str, Value]:
    model = whole["model"]
    first: dict[str, int] = {}
    for place, pair in enumerate(pairs := _pairs(model)):
        first.setdefault("".join(pair), place)
    added = {each["content"] for each in whole["added_tokens"]}  # found in the text before any merge
    if not _joins_by_token([pair for pair in pairs if "".join(pair) not in added], model["vocab"]):
        raise _unknown(name, "its merges are not those that SentencePiece's scores of tokens give")
    unknown = model.get("unk_token")
    for place, token in enumerate(tokens):
        if token == unknown:
            kinds[place] = UNKNOWN
        elif len(token) == 6 and token.startswith("<0x") and kinds[place] == NORMAL:
            kinds[place] = BYTE
        elif kinds[place] == USER_DEFINED:
            tokens[place] = token.replace(SPACE, " ")
    first_token = tokenizer.convert_ids_to_tokens(tokenizer("a", add_special_tokens=False).input_ids)[0]
    return {
        "ggml.model": "llama",
        "ggml.pre": "default",
        "ggml.tokens": tokens,
        "ggml.scores": [
            float(-first[token]) if token in first else ADDED_SCORE if kind != NORMAL else float(-len(first))
            for token, kind in zip(tokens, kinds, strict=True)
        ],
        "ggml.add_space_prefix": first_token.startswith(SPACE),
    }


def _joins_by_token(pairs: Sequence[tuple[str, str]], vocabulary: Mapping[str, int]) -> bool:
    """Whether merges are in the order of their tokens, and any two tokens that join are among them."""
    tokens = ["".join(pair) for pair in pairs]
    runs = sum(1 for before, after in pairwise(["", *tokens]) if before != after)
    known = set(pairs)
    return runs == len(set(tokens)) and all(
        (token[:cut], token[cut:]) in known
        for token in set(tokens)
        for cut in range(1, len(token))
        if token[:cut] in vocabulary and token[cut:] in vocabulary
    )


def _pairs(model: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The merges; older files hold "a b" for ("a", "b")."""
    pairs = (each.split(" ", 1) if isinstance(each, str) else each for each in model["merges"])
    return [(left, right) for left, right in pairs]


def _special(tokenizer: Any, stop: Sequence[int]) -> dict[str, Value]:
    """Tokens with a part of their own, and which of them are put around a text."""
    own, bare = tokenizer("a").input_ids, tokenizer("a", add_special_tokens=False).input_ids
    before = next(n for n in range(len(own)) if own[n : n + len(bare)] == bare)
    ids = {
        "bos": tokenizer.bos_token_id,
        "eos": tokenizer.eos_token_id,
        "unknown": tokenizer.unk_token_id,
        "padding": tokenizer.pad_token_id,
        "eot": next((each for each in sorted(stop) if each != tokenizer.eos_token_id), None),
    }
    return {
        **{f"ggml.{role}_token_id": place for role, place in ids.items() if place is not None},
        "ggml.add_bos_token": before > 0,
        "ggml.add_eos_token": len(own) > before + len(bare),
    }


def _unknown(name: str, why: str) -> BaseError:
    return BaseError(
        f"base {name} cannot be written as GGUF: {why}; export it --to merged, and convert that folder with"
        " llama.cpp's convert_hf_to_gguf.py"
    )
