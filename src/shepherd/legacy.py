"""Keys of a run file as the version before had them, which this version still reads."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from shepherd.errors import SettingsError

log = logging.getLogger(__name__)

MOVED = {
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
"""Dotted keys, and what they are called now."""
OF_SPLIT = {
    "clients": ("iid", "dirichlet", "shards", "size"),
    "alpha": ("dirichlet",),
    "shards_per_client": ("shards",),
    "field": ("natural", "dirichlet", "shards"),
    "size_exponent": ("size",),
}
"""The keys that every `[split]` had, and the splits that go by them."""
SPLITS = ("iid", "dirichlet", "shards", "natural", "size", "ready_made")
"""What `split.by` could be."""


def renamed(table: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """The table with every old key under its new name, and a sentence on each.

    >>> renamed({"federation": {"share": 0.1, "rounds": 3}})[0]
    {'federation': {'rounds': 3}, 'selection': {'share': 0.1}}

    Raises:
        SettingsError: a key is there under both names.
    """
    found, sentences = dict(table), list[str]()
    for old, new in MOVED.items():
        found = _moved(found, old, new, sentences)
    return _without_idle(_without_false(found, sentences), sentences), sentences


def modern(table: Mapping[str, Any], where: str) -> dict[str, Any]:
    """A run file's table with the keys of the version before under their new names, each with a warning.

    Raises:
        SettingsError: a key is there under both names.
    """
    found, sentences = renamed(table)
    for sentence in sentences:
        warn_once(f"{where}: {sentence}")
    return found


@cache  # a run folder is read many times
def warn_once(sentence: str) -> None:
    log.warning("%s", sentence)


def moved(key: str) -> str:
    """The sentence on a key that has another name now."""
    return f"{key} is now {MOVED[key]}; write that, since the next version does not know the old key"


def _moved(table: dict[str, Any], old: str, new: str, sentences: list[str]) -> dict[str, Any]:
    was, key = old.split(".")
    before = table.get(was)
    if not isinstance(before, Mapping) or key not in before:
        return table
    left = {each: value for each, value in before.items() if each != key}
    try:
        found = _put({**table, was: left}, new.split("."), before[key])
    except KeyError:
        raise SettingsError(f"{old} and {new} are both set, and are the same key; keep {new}") from None
    except TypeError:  # what should be a table is none, which is said where it is read
        return table
    sentences.append(moved(old))
    return found


def _put(table: Mapping[str, Any], path: Sequence[str], value: Any) -> dict[str, Any]:
    """The table with a value at a path of keys; KeyError where there is one already."""
    first, *rest = path
    if rest:
        return {**table, first: _put(table.get(first, {}), rest, value)}
    if first in table:
        raise KeyError(first)
    return {**table, first: value}


def _without_false(table: dict[str, Any], sentences: list[str]) -> dict[str, Any]:
    """With 0 where no clipping of gradients was `false`."""
    tuning = table.get("tuning")
    if not isinstance(tuning, Mapping) or tuning.get("clip_norm") is not False:
        return table
    sentences.append(
        "tuning.clip_norm = false is 0 now; write that, since the next version takes numbers alone"
    )
    return {**table, "tuning": {**tuning, "clip_norm": 0.0}}


def _without_idle(table: dict[str, Any], sentences: list[str]) -> dict[str, Any]:
    """Without what did nothing beside its own choice: a share of all, and the keys of another split."""
    selection, split = table.get("selection"), table.get("split")
    if sentences and isinstance(selection, Mapping) and selection.get("name") == "all":
        table = {**table, "selection": {each: v for each, v in selection.items() if each != "share"}}
    if not isinstance(split, Mapping):
        return table
    by = str(split.get("by", "iid")).replace("-", "_")
    idle = [key for key in split if by in SPLITS and by not in OF_SPLIT.get(key, SPLITS)]
    if idle:
        names = ", ".join(f"split.{key}" for key in idle)
        sentences.append(
            f"{names} {'do' if len(idle) > 1 else 'does'} nothing where split.by is {by!r}; leave"
            f" {'them' if len(idle) > 1 else 'it'} out, which the next version asks for"
        )
    return {**table, "split": {key: value for key, value in split.items() if key not in idle}}
