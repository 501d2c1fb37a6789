"""Code that comes with a base: where it is from, and whether it may run (law 12).

A base may contain Python that transformers imports when it loads the configuration, the tokenizer or the
model. A run file, a run folder or an adapter can only request it. And a configuration may name other
repositories from which transformers would download without being asked: kernels, which are code, and parts of
the model.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from transformers import PretrainedConfig

from shepherd.consent import NOTHING, Consent
from shepherd.errors import BaseError
from shepherd.settings import ModelTable
from shepherd.visible import shown_line

TORCH_ATTENTION = ("eager", "sdpa", "flex_attention")
"""Attention that torch provides; any other name in a configuration is downloaded, or is a package."""
EXPERT_IMPLEMENTATIONS = ("eager", "batched_mm", "grouped_mm")
"""Implementations of experts that transformers provides."""
FLASH_ATTENTION = ("flash_attention_2", "flash_attention_3", "flash_attention_4")
"""Attention of an installed package; with the package `kernels` it may be downloaded from the hub."""
QUANTISATION_METHODS = ("bitsandbytes", "bitsandbytes_4bit", "bitsandbytes_8bit")
"""Quantisation methods that need no kernels from the hub."""

LOADING_ERRORS = (
    *(OSError, ValueError, TypeError, LookupError, ArithmeticError, ImportError, AttributeError),
    *(AssertionError, StrictDataclassError),
)
"""Exceptions that transformers raises for a configuration or a tokenizer that it cannot use."""


def allowed(model: ModelTable, consent: Consent = NOTHING) -> bool:
    """Whether code that comes with the base runs: `trust_remote_code` asks for it and a person agreed.

    Raises:
        BaseError: it is asked for and nobody agreed (the base is not loaded in another way, which might give
            another model), or the configuration would download something that nobody agreed to.
    """
    if model.trust_remote_code and not consent.remote_code:
        raise BaseError(
            f"model.trust_remote_code asks to run {whose(model)} on this machine, and settings alone cannot"
            " allow that; nothing of it ran: read it, then give --trust-remote-code (in Python:"
            " consent=Consent(remote_code=True))"
        )
    if not model.trust_remote_code:
        _require_nothing_fetched(model)
    return model.trust_remote_code


def configuration(model: ModelTable) -> dict[str, Any]:
    """The base's configuration as written in the file that transformers reads; empty if it cannot be read."""
    try:
        found, _ = PretrainedConfig.get_config_dict(model.base, revision=model.revision)
        return dict(found or {})
    except LOADING_ERRORS:  # loading it reports what is wrong
        return {}


def _require_nothing_fetched(model: ModelTable) -> None:
    for path, text in _texts(configuration(model), ()):
        if _fetches(path, text):
            key = shown_line(".".join(filter(None, path)))
            raise BaseError(
                f"base {model.base} has {key} = {json.dumps(text)} in its config.json, for which transformers"
                " would download something from the hub, mostly code; nothing was downloaded:"
                " remove the key, or read what it names, then set model.trust_remote_code = true and give"
                " --trust-remote-code"
            )


def _fetches(path: tuple[str, ...], text: str) -> bool:
    """Whether transformers may download something because of this text, by the keys that lead to it."""
    with_kernels = find_spec("kernels") is not None
    if any("attn_implementation" in key for key in path):
        return text not in (TORCH_ATTENTION if with_kernels else TORCH_ATTENTION + FLASH_ATTENTION)
    if any("experts_implementation" in key for key in path):
        return text not in EXPERT_IMPLEMENTATIONS
    match path[-1]:
        case "backbone":  # without a configuration of its own it is from the hub
            return True
        case "quant_method":
            return with_kernels and text not in QUANTISATION_METHODS
        case "model_type":  # the only architecture that requests a kernel by itself
            return with_kernels and text == "rwkv"
        case _:
            return False


def require_known(model: ModelTable, error: Exception) -> None:
    """Raise BaseError saying how to allow it, if a base was not loaded because it needs code of its own."""
    if "trust_remote_code" in str(error) and not model.trust_remote_code:
        raise BaseError(
            f"base {model.base} needs {whose(model)}, which did not run: read it, then set"
            " model.trust_remote_code = true and give --trust-remote-code"
        ) from error


def whose(model: ModelTable) -> str:
    """Where a base's code is from, in words: `the code of folder /bases/x (modeling_x.py)`."""
    folder = Path(model.base)
    if not folder.is_dir():
        at = f" at {model.revision}" if model.revision else ""
        return f"the code of the Hugging Face repository {model.base}{at}"
    files = sorted(path.name for path in folder.glob("*.py"))
    others = sorted(set(_repositories(folder)))
    named = f" ({', '.join(files[:3])}{', ...' if len(files) > 3 else ''})" if files else ""
    many = "repositories" if len(others) > 1 else "repository"
    elsewhere = f", and of the Hugging Face {many} {' and '.join(others)}" if others else ""
    return f"the code of folder {folder}{named}{elsewhere}"


def _repositories(folder: Path) -> Iterator[str]:
    """The repositories from which a base's configurations would download something.

    Classes are written as `owner/name--module.Class`, kernels as `owner/name@revision:function`.
    """
    for name in ("config.json", "tokenizer_config.json"):
        for path, text in _texts(_read(folder / name), ()):
            repository, found, _ = text.partition("--")
            if "auto_map" in path and found:
                yield repository
            elif _fetches(path, text) and (named := re.search(r"[\w.-]+/[\w.-]+", text)):
                yield named[0]


def _read(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text(encoding="utf8")))
    except (OSError, ValueError, TypeError):
        return {}


def _texts(value: Any, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], str]]:
    """The texts in a JSON value, each with the keys that lead to it."""
    match value:
        case str() if path:
            yield path, value
        case dict():
            for key, inner in value.items():
                yield from _texts(inner, (*path, str(key)))
        case list():
            for place, inner in enumerate(value):
                yield from _texts(inner, (*path, str(place)))
