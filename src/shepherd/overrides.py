"""Read a run file, apply `key=value` overrides, and write it out again.

A path in a run file is relative to the file; one in an override, or in a table from Python, to the current
directory. They are absolute once they are read, so that a run folder holds wherever it is used from. `output`
alone is relative to the current directory, always.
"""

from __future__ import annotations

import copy
import logging
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import tomli_w

from shepherd import legacy
from shepherd.config import validated
from shepherd.errors import SettingsError
from shepherd.io import paths, toml
from shepherd.settings import PATHS, RunSettings, as_text
from shepherd.visible import shown_toml

log = logging.getLogger(__name__)


def read(path: str | Path, overrides: Iterable[str] = ()) -> RunSettings:
    """Read a run file and apply `key=value` overrides (dotted keys; values in TOML, or bare words).

    Paths in the file are relative to the file, those in overrides to the current directory.

    Raises:
        SettingsError: the file is missing or not TOML, a key is unknown, or a value is impossible.
    """
    path = Path(path)
    own = legacy.modern(_placed(toml.read(path, "run file"), path.absolute().parent, path), str(path))
    changed = _overridden(copy.deepcopy(own), overrides)
    if isinstance(output := changed.get("output"), str):
        toml.require_no_escape(output, "output")
    return validated(RunSettings, _placed(changed, Path.cwd(), known=own), str(path))


def read_kept(path: Path) -> RunSettings:
    """Read the run file in a run folder; its paths are absolute and stay as they are.

    Raises:
        SettingsError: as `read`.
    """
    return validated(RunSettings, toml.read(path, "run file"), str(path))


def parse(table: Mapping[str, Any], where: str = "the run settings") -> RunSettings:
    """Validate a plain table as a run file; its paths are relative to the current directory.

    Raises:
        SettingsError: a key is unknown or missing, or a value is impossible; one sentence each, with
            its dotted key.
    """
    return validated(RunSettings, _placed(table, Path.cwd()), where)


def _placed(
    table: Mapping[str, Any], folder: Path, file: Path | None = None, known: Mapping[str, Any] = {}
) -> dict[str, Any]:
    """The table with its paths made absolute from `folder`, except those that are equal in `known`."""
    whole = dict(table)
    for (name, key), names in PATHS.items():
        inner = whole.get(name)
        text = as_text(inner.get(key)) if isinstance(inner, Mapping) else None
        if not isinstance(text, str) or text in names:
            continue
        if not text.strip():
            raise SettingsError(
                f"key {name}.{key}: the text is empty; write a folder, a file or a Hugging Face id"
            )
        before = known.get(name)
        if isinstance(before, Mapping) and before.get(key) == text:
            continue
        whole[name] = {**inner, key: _path(text, folder, f"{name}.{key}", file)}  # type: ignore[dict-item]
    if isinstance(stages := whole.get("stages"), list | tuple):
        before = dict(enumerate(known.get("stages", ())))
        whole["stages"] = [
            _placed(stage, folder, file, before.get(number, {})) if isinstance(stage, Mapping) else stage
            for number, stage in enumerate(stages)
        ]
    return whole


def _path(text: str, folder: Path, key: str, file: Path | None) -> str:
    here = Path.cwd() / text
    there = folder / os.path.expanduser(text)
    if not os.path.exists(there):
        toml.require_no_escape(text, key)
    if file is not None and not os.path.exists(there) and os.path.exists(here):
        log.warning(
            "run file %s: %s = %r was found relative to the current directory; the next version will look"
            " only relative to the run file, so write %r",
            file, key, text, os.path.relpath(here, folder),
        )  # fmt: skip
        folder = Path.cwd()
    placed = paths.placed(text, folder)
    if not paths.is_utf8(placed):
        raise SettingsError(
            f"key {key}: the path {os.fsencode(placed)!r} is not UTF-8, which a run file requires; rename it"
        )
    return placed


def require_settings(settings: Any) -> None:
    """Raise SettingsError unless a value is settings, such as `read` and `parse` return."""
    if not isinstance(settings, RunSettings):
        raise SettingsError(
            f"the settings are a {type(settings).__name__}; read them from a run file with"
            " shepherd.read(FILE), or from a dict with shepherd.parse(DICT)"
        )


def require_one_stage(settings: RunSettings, doing: str) -> None:
    """Raise SettingsError if the settings have stages.

    Args:
        doing: what is to be done with a run file, as a verb.
    """
    if settings.stages:
        raise SettingsError(
            f"[[stages]] are runs of their own; {doing} each of them from a file of its own, without stages"
        )


def overridden(settings: RunSettings, overrides: Iterable[str]) -> RunSettings:
    """Settings with `key=value` overrides applied; paths in them are relative to the current directory.

    Raises:
        SettingsError: as `read`.
    """
    require_settings(settings)
    if isinstance(overrides, str | Mapping):
        raise SettingsError(
            f"the overrides are a {type(overrides).__name__}; write a list of texts, such as"
            ' ["federation.rounds=2"]'
        )
    own = plain(settings)
    changed = _overridden(copy.deepcopy(own), overrides)
    return validated(RunSettings, _placed(changed, Path.cwd(), known=own), "the run settings")


def assigned(overrides: Iterable[str]) -> dict[str, Any]:
    """Build a plain table from `key=value` texts.

    Raises:
        SettingsError: an override has no key or no value.

    >>> assigned(["limit=80", "protocol=fedit"])
    {'limit': 80, 'protocol': 'fedit'}
    """
    return _overridden({}, overrides)


def _overridden(table: dict[str, Any], overrides: Iterable[str]) -> dict[str, Any]:
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals or not key:
            raise SettingsError(f"override {override!r} is not key=value; write federation.rounds=2")
        if not paths.is_utf8(override):
            named = os.fsencode(override)
            raise SettingsError(
                f"override {named!r} is not UTF-8, which a run file requires; rename the file"
            )
        key, value = _translated(key.strip(), toml.value(text.strip()), table)
        *parents, last = key.split(".")
        inner = table
        for parent in parents:
            inner = inner.setdefault(parent, {})
            if not isinstance(inner, dict):
                raise SettingsError(f"override {key}: {parent} is not a table; set {parent} as a whole")
        inner[last] = value
    return table


def _translated(key: str, value: Any, table: dict[str, Any]) -> tuple[str, Any]:
    """The key and value of an override, with the new name for a key of the previous version."""
    new = legacy.RENAMED_KEYS.get(key, key)
    if new != key:
        legacy.warn_once(f"override {key}: {legacy.renaming_warning(key)}")
        if (key, value) == ("federation.select", "all") and isinstance(table.get("selection"), dict):
            table["selection"].pop("share", None)  # which it does not have
    return new, value


def plain(settings: RunSettings) -> dict[str, Any]:
    """Settings as JSON values, without keys that are None; `parse` reads them back to equal settings."""
    values: dict[str, Any] = _without_none(settings.model_dump(mode="json"))
    return values


def dump(settings: RunSettings) -> str:
    """Write settings as a whole run file, defaults included; `parse` reads it back to equal settings."""
    return shown_toml(tomli_w.dumps(plain(settings)))


def _without_none(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _without_none(v) for k, v in value.items() if v is not None}  # TOML has no null
    return [_without_none(item) for item in value] if isinstance(value, list) else value
