"""Code that comes with a base: whose it is, and whether it may run (law 12).

A base may bring Python that transformers imports when it loads the configuration, the tokenizer or the model.
A run file, a run folder or an adapter can only wish for it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from shepherd.consent import Consent
from shepherd.errors import BaseError
from shepherd.settings import ModelTable


def allowed(model: ModelTable, consent: Consent) -> bool:
    """Whether code that comes with the base runs: where `trust_remote_code` asks for it and a person agreed.

    Raises:
        BaseError: it is asked for and nobody agreed; the base is not loaded another way, which might be
            another model.
    """
    if model.trust_remote_code and not consent.remote_code:
        raise BaseError(
            f"model.trust_remote_code asks to run {whose(model)} on this machine, and settings alone do not"
            " decide that; nothing of it ran: read it, then give --trust-remote-code (in Python:"
            " consent=Consent(remote_code=True))"
        )
    return model.trust_remote_code


def require_known(model: ModelTable, error: Exception) -> None:
    """Raise BaseError with the way to allow it, where a base was not loaded for want of code of its own."""
    if "trust_remote_code" in str(error) and not model.trust_remote_code:
        raise BaseError(
            f"base {model.base} needs {whose(model)}, which did not run: read it, then set"
            " model.trust_remote_code = true and give --trust-remote-code"
        ) from error


def whose(model: ModelTable) -> str:
    """The code in words, as far as it is on this disk: `the code of folder /bases/x (modeling_x.py)`."""
    folder = Path(model.base)
    if not folder.is_dir():
        at = f" at {model.revision}" if model.revision else ""
        return f"the code of the Hugging Face repository {model.base}{at}"
    files = sorted(path.name for path in folder.glob("*.py"))
    others = sorted(set(_repositories(folder)))
    named = f" ({', '.join(files[:3])}{', ...' if len(files) > 3 else ''})" if files else ""
    beside = f", and of the Hugging Face repository {' and '.join(others)}" if others else ""
    return f"the code of folder {folder}{named}{beside}"


def _repositories(folder: Path) -> Iterator[str]:
    """The repositories that a base's configurations take classes from: `owner/name--module.Class`."""
    for name in ("config.json", "tokenizer_config.json"):
        for reference in _strings(_read(folder / name).get("auto_map")):
            repository, found, _ = reference.partition("--")
            if found:
                yield repository


def _read(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text(encoding="utf8")))
    except (OSError, ValueError, TypeError):
        return {}


def _strings(value: Any) -> Iterator[str]:
    match value:
        case str():
            yield value
        case dict():
            for inner in value.values():
                yield from _strings(inner)
        case list():
            for inner in value:
                yield from _strings(inner)
