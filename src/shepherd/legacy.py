"""Old keys of a run file that this version still reads, with a warning."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from shepherd.errors import SettingsError

log = logging.getLogger(__name__)

RENAMED_KEYS = {
    "federation.share": "selection.share",
    "federation.select": "selection.name",
    "tuning.betas": "tuning.optimiser.betas",
    "tuning.weight_decay": "tuning.optimiser.weight_decay",
    "model.device": "machine.device",
    "tuning.threads": "machine.threads",
    "tuning.workers": "machine.workers",
    "tuning.cohort_size": "machine.stack_size",
    "tuning.micro_batch_tokens": "machine.micro_batch_tokens",
    "federation.sites": "silos.sites",
    "federation.deadline": "silos.deadline_s",
    "federation.wave": "silos.max_in_flight",
}
"""Old dotted keys and their new names."""
SPLIT_KEYS = {
    "clients": ("iid", "dirichlet", "shards", "size"),
    "alpha": ("dirichlet",),
    "shards_per_client": ("shards",),
    "field": ("natural", "dirichlet", "shards"),
    "size_exponent": ("size",),
}
"""Keys that every `[split]` had, and the splits that use them."""
SPLITS = ("iid", "dirichlet", "shards", "natural", "size", "ready_made")
"""Values that `split.by` could have."""


def renamed(table: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Put every old key of a table under its new name; returns the table and a sentence for each key.

    >>> renamed({"federation": {"share": 0.1, "rounds": 3}})[0]
    {'federation': {'rounds': 3}, 'selection': {'share': 0.1}}

    Raises:
        SettingsError: a key is set under both names.
    """
    found, sentences = dict(table), list[str]()
    for old, new in RENAMED_KEYS.items():
        found = _with_renamed_key(found, old, new, sentences)
    return _without_unused(_with_numeric_clip_norm(found, sentences), sentences), sentences


def modern(table: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Put every old key of a run file's table under its new name, with one warning each.

    Raises:
        SettingsError: a key is set under both names.
    """
    found, sentences = renamed(table)
    for sentence in sentences:
        warn_once(f"{where}: {sentence}")
    return found


@cache  # a run folder is read many times
def warn_once(sentence: str) -> None:
    log.warning("%s", sentence)


def renaming_warning(key: str) -> str:
    """The sentence that warns of an old key."""
    new = RENAMED_KEYS[key]
    return f"{key} is now {new}; use the new name, since the next version will not read the old one"


def _with_renamed_key(table: dict[str, Any], old: str, new: str, sentences: list[str]) -> dict[str, Any]:
    was, key = old.split(".")
    before = table.get(was)
    if not isinstance(before, Mapping) or key not in before:
        return table
    left = {each: value for each, value in before.items() if each != key}
    try:
        found = _with_value({**table, was: left}, new.split("."), before[key])
    except KeyError:
        raise SettingsError(f"{old} and {new} are both set but are the same key; keep {new}") from None
    except TypeError:  # not a table, which validation reports
        return table
    sentences.append(renaming_warning(old))
    return found


def _with_value(table: Mapping[str, Any], path: Sequence[str], value: Any) -> dict[str, Any]:
    """The table with a value set at a path of keys; KeyError if the key is set already."""
    first, *rest = path
    if rest:
        return {**table, first: _with_value(table.get(first, {}), rest, value)}
    if first in table:
        raise KeyError(first)
    return {**table, first: value}


def _with_numeric_clip_norm(table: dict[str, Any], sentences: list[str]) -> dict[str, Any]:
    """The table with `tuning.clip_norm = 0` instead of `false`."""
    tuning = table.get("tuning")
    if not isinstance(tuning, Mapping) or tuning.get("clip_norm") is not False:
        return table
    sentences.append("tuning.clip_norm = false is now 0; write 0, since the next version reads only numbers")
    return {**table, "tuning": {**tuning, "clip_norm": 0.0}}


def _without_unused(table: dict[str, Any], sentences: list[str]) -> dict[str, Any]:
    """The table without keys that had no effect: the share of selection "all", and keys of another split."""
    selection, split = table.get("selection"), table.get("split")
    if sentences and isinstance(selection, Mapping) and selection.get("name") == "all":
        table = {**table, "selection": {each: v for each, v in selection.items() if each != "share"}}
    if not isinstance(split, Mapping):
        return table
    by = str(split.get("by", "iid")).replace("-", "_")
    unused = [key for key in split if by in SPLITS and by not in SPLIT_KEYS.get(key, SPLITS)]
    if unused:
        names = ", ".join(f"split.{key}" for key in unused)
        sentences.append(
            f"{names} {'have' if len(unused) > 1 else 'has'} no effect if split.by is {by!r}; remove"
            f" {'them' if len(unused) > 1 else 'it'}, since the next version reports an error"
        )
    return {**table, "split": {key: value for key, value in split.items() if key not in unused}}
