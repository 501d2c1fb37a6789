"""What may change in the settings of a run that has begun.

`trained-with.toml` in a run folder holds the settings that its rounds were trained with. Report, model card
and log describe all rounds by one run file, so a change is refused by its key; more rounds may be added.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from shepherd.core import Method
from shepherd.errors import FolderError, SettingsError
from shepherd.io.phrases import listed
from shepherd.machine.plan import PLAN
from shepherd.overrides import dump, overridden, plain, read_kept
from shepherd.run import checkpoint, folder
from shepherd.run.folder import RUN_FILE, TRAINED_WITH, RunFolder
from shepherd.settings import RunSettings

ROUNDS = "federation.rounds"
FREE = ("compare", "judge", "tracking", "checkpoints")
"""Tables that no number of a run depends on."""
NO_DIFFERENCE = ("output", "machine", "compare", "judge", "tracking", "checkpoints", "silos")
"""Tables and keys that do not change what is trained."""
CHECKED = ("model.base",)
"""Keys that may change after the first checkpoint, which knows what they name by its fingerprint."""
log = logging.getLogger(__name__)


def continued(path: str | Path, overrides: Iterable[str] = ()) -> RunSettings:
    """Read the settings with which a run continues: those of its run file, with `overrides` applied.

    A folder of an earlier version does not say what its rounds were trained with; its run file counts.

    Raises:
        FolderError: there is no run; or its run file was edited in a key that its rounds depend on.
        SettingsError: an override changes such a key, or there would be fewer rounds than before.
    """
    # one text alone would be read letter by letter
    path, overrides = Path(path), (overrides,) if isinstance(overrides, str) else tuple(overrides)
    written = folder.read_settings(path)
    before = _trained_with(path) or written
    if edited := _refused(before, written, path):
        key, was, now = edited[0]
        raise FolderError(
            f"{path / RUN_FILE} was edited: {listed([each[0] for each in edited])} changed since the run"
            f" began ({key} was {_value(was)} and is {_value(now)}), and its rounds were trained with the old"
            f" value; put it back, or start a run with output=ANOTHER_FOLDER{_place_of(key)}"
        )
    after = overridden(written, overrides) if overrides else written
    if changed := _refused(before, after, path):
        key, was, now = changed[0]
        raise SettingsError(
            f"{key}={_value(now)} cannot be changed in {path}, whose rounds were trained with {_value(was)};"
            f" `resume` can only raise {ROUNDS}, so start a run with output=ANOTHER_FOLDER{_place_of(key)}"
        )
    _require_no_fewer(path, before, after)
    return after


def keep(holder: RunFolder, settings: RunSettings) -> None:
    """Write the settings with which a run continues into its folder, the run file first.

    The adapter of a finished run that gets more rounds is withdrawn first. A kill between the two files
    leaves a run file with more rounds, which is what a person may write as well.
    """
    if folder.ended(holder.path) not in (None, settings.federation.rounds):
        holder.withdraw()
    if settings != folder.read_settings(holder.path):
        holder.write(RUN_FILE, dump(settings))
    if settings != _trained_with(holder.path):
        holder.write(TRAINED_WITH, dump(settings))


def rounds_before(path: str | Path) -> int:
    """How many rounds a run was last given; a run file that was edited since may have more."""
    return (_trained_with(Path(path)) or folder.read_settings(path)).federation.rounds


def remark(settings: RunSettings, path: Path) -> str:
    """Say what a run that gets more rounds differs in from one that had them from the start; or nothing."""
    before = _trained_with(path)
    if before is None or before.federation.rounds == settings.federation.rounds:
        return ""
    was, now = before.federation.rounds, settings.federation.rounds
    said = f"the run has {now} rounds instead of {was}"
    if settings.tuning.round_schedule == "constant":
        return said
    return (
        f"{said}: its first rounds followed tuning.round_schedule over {was}, the others follow it over"
        f" {now}, so the result is not that of a run of {now} rounds from the start"
    )


def require_extendable(method: Method) -> None:
    """Raise SettingsError if a transform of the method set its noise for the number of rounds."""
    if method.transform.mechanism is not None:
        raise SettingsError(
            f"{ROUNDS} cannot be raised, since a transform set its noise for the number of rounds;"
            " start a run with output=ANOTHER_FOLDER"
        )


def _require_no_fewer(path: Path, before: RunSettings, after: RunSettings) -> None:
    was, now = before.federation.rounds, after.federation.rounds
    if now < was:
        raise SettingsError(
            f"{ROUNDS}={now} is fewer than the {was} rounds of the run in {path}; `resume` can only raise it"
        )


def _trained_with(path: Path) -> RunSettings | None:
    """Settings that the rounds of a run were trained with; None in a folder of an earlier version."""
    file = path / TRAINED_WITH
    if not (file.is_file() and (path / PLAN).is_file()):
        return None
    try:
        return read_kept(file)
    except SettingsError as error:
        raise FolderError(
            f"{file} is damaged ({error}); restore it from a copy, or remove it if {RUN_FILE} was"
            " never edited"
        ) from error


def _refused(before: RunSettings, after: RunSettings, path: Path) -> Sequence[tuple[str, Any, Any]]:
    """Keys that differ and may not, with their old and new values; nothing without a key is 'unset'."""
    begun = checkpoint.latest(path / "checkpoints") is not None
    allowed = (ROUNDS, *(CHECKED if begun else ()))
    return [
        change
        for change in differing(plain(before), plain(after))
        if change[0] not in allowed and change[0].split(".")[0] not in FREE
    ]


def differing(before: Any, after: Any, key: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Dotted keys that differ between two plain tables, each with its values; None where there is none."""
    if isinstance(before, Mapping) and isinstance(after, Mapping):
        for name in dict.fromkeys((*before, *after)):
            yield from differing(before.get(name), after.get(name), f"{key}.{name}" if key else name)
    elif before != after:
        yield key, before, after


def _value(value: Any) -> str:
    return "not set" if value is None else json.dumps(value, ensure_ascii=False)


def _place_of(key: str) -> str:
    return f" (what this machine chose is in {PLAN})" if key.startswith("machine.") else ""
