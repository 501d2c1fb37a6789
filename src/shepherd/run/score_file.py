"""The file of a run's further scores: benchmark tasks and refusals, of each arm and of the untuned base.

RUN_FOLDER/evaluation.json has one row a score. It names the adapters that were scored, so that scores of
others are never taken for theirs: an arm's score is the mean over its seeds, and each adapter has its own.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shepherd.errors import FolderError
from shepherd.evaluate.how import How, replaces
from shepherd.io.atomic import disk_errors, write_atomic
from shepherd.visible import shown_json

FILE = "evaluation.json"
FORMAT = 1
OF_ARMS = ("arms", "differences", "says", "adapters", "by_adapter")
"""Keys of a row that have a value for each arm."""
MEASUREMENT = ("name", "kind", "documents", "how", "asked", "judge")
"""Keys of a row that say what was measured, and how."""
BASE, FEDERATED = "base", "federated"
WEIGHTS = "adapter_model.safetensors"

Row = dict[str, Any]
Numbers = Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Own:
    """A score of one adapter, of the base, and the difference: each with its `value`, `low` and `high`."""

    row: Row
    base: Numbers
    adapter: Numbers
    difference: Numbers


def digest_of(folder: Path) -> str:
    """Digest of the adapter file in a folder.

    Raises:
        FolderError: there is none, or it cannot be read.
    """
    with disk_errors(folder):
        return hashlib.sha256((folder / WEIGHTS).read_bytes()).hexdigest()[:16]


def read(run: Path) -> list[Row]:
    """The scores in a run folder; empty if there are none.

    Raises:
        FolderError: the file is damaged.
    """
    path = run / FILE
    with disk_errors(run):
        if not path.is_file():
            return []
        content = path.read_bytes()
    try:
        found = json.loads(content)["scores"]
        if not all(isinstance(row["name"], str) and isinstance(row["arms"], dict) for row in found):
            raise TypeError("a score has no name or no arms")
        for row in found:
            if How.of(row) is not None and type(row["documents"]) is not int:
                raise TypeError("a score has no number of documents")
    except (ValueError, KeyError, TypeError) as error:
        said = " ".join(str(error).split())
        raise FolderError(
            f"{path} is damaged ({said}); remove it and run `shepherd evaluate` again"
        ) from error
    return list(found)


def add(run: Path, new: Sequence[Row]) -> list[Row]:
    """Write scores into a run folder, in place of older ones that they replace; returns all of them.

    Scores that were measured in another way stay beside them; see `how.replaces`. So do those of arms that
    were not measured again, in the row of the others: their p-values are corrected for the arms that were
    measured with them. Older scores of adapters that are there no longer are dropped, and refusals of what a
    file of prompts held before.

    Raises:
        FolderError: the file is damaged, or the disk is full.
    """
    digests = {arm: digest for row in new for arm, digest in row["adapters"].items()}
    before = [row for row in read(run) if _same(row["adapters"], digests)]
    kept = [
        row for row in before if not any(replaces(each, row) or _asks_otherwise(each, row) for each in new)
    ]
    scores = [*kept, *(_with_other_arms(each, before) for each in new)]
    text = json.dumps({"format": FORMAT, "scores": scores}, indent=1, ensure_ascii=False, allow_nan=False)
    write_atomic(run / FILE, shown_json(text) + "\n")
    return scores


def _with_other_arms(new: Row, before: Sequence[Row]) -> Row:
    """The row, with those arms of an older one of the same measurement that it lacks."""
    old = next((row for row in before if all(row.get(key) == new.get(key) for key in MEASUREMENT)), {})
    return new | {key: {**old[key], **new[key]} for key in OF_ARMS if key in old and key in new}


def current(run: Path) -> list[Own]:
    """The scores of the adapter that the run folder holds now: its own, and of others none."""
    scores = read(run)
    if not scores or not (run / "adapter" / WEIGHTS).is_file():
        return []
    digest = digest_of(run / "adapter")
    return [found for row in scores if (found := _of_adapter(row, digest)) is not None]


def own(digests: Sequence[str], scores: Sequence[Row], digest: str) -> Row | None:
    """The adapter's own score among those of an arm; None if it is not of the arm, or has none of its own.

    Args:
        digests: those of the arm's adapters.
        scores: the own score of each, `by_adapter` in a row; empty in files of earlier versions.
    """
    return dict(zip(digests, scores, strict=False)).get(digest)


def _of_adapter(row: Row, digest: str) -> Own | None:
    """An adapter's own score. A row of an earlier version has it only of an arm with one seed."""
    digests = row["adapters"].get(FEDERATED, ())
    found = own(digests, row.get("by_adapter", {}).get(FEDERATED, ()), digest)
    if found is None and "by_adapter" not in row and digests == [digest]:
        found = {**row["arms"].get(FEDERATED, {}), "difference": row["differences"].get(FEDERATED, {})}
    if found is None:
        return None
    return Own(row=row, base=row["arms"].get(BASE, {}), adapter=found, difference=found.get("difference", {}))


def _same(kept: Mapping[str, Any], now: Mapping[str, Any]) -> bool:
    """Whether the adapters of a score are those that are there now, or some of their seeds."""
    pairs = [(set(digests), set(now.get(arm, digests))) for arm, digests in kept.items()]
    return all(then <= there or there <= then for then, there in pairs)


def _asks_otherwise(new: Row, old: Row) -> bool:
    """Whether two are refusals of one file of prompts, with other prompts in it."""
    if "asked" not in new or "asked" not in old or new["asked"] == old["asked"]:
        return False
    now, then = How.of(new), How.of(old)
    if now is None or then is None:
        return then is None
    return (now.prompts, now.max_new_tokens) == (then.prompts, then.max_new_tokens)
