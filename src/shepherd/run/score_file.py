"""The file of a run's further scores: benchmark tasks and refusals, of each arm and of the untuned base.

RUN_FOLDER/evaluation.json has one row a score. It names the adapters that were scored, so that scores of
others are never taken for theirs.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from shepherd.errors import FolderError
from shepherd.io.atomic import disk_errors, write_atomic
from shepherd.visible import shown_json

FILE = "evaluation.json"
FORMAT = 1
BASE, FEDERATED = "base", "federated"
WEIGHTS = "adapter_model.safetensors"

Row = dict[str, Any]


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
    except (ValueError, KeyError, TypeError) as error:
        raise FolderError(
            f"{path} is damaged ({error}); remove it and run `shepherd evaluate` again"
        ) from error
    return list(found)


def add(run: Path, new: Sequence[Row]) -> list[Row]:
    """Write scores into a run folder, in place of older ones of the same names; returns all of them.

    Older scores of adapters that are there no longer are dropped, and refusals of other prompts.

    Raises:
        FolderError: the file is damaged, or the disk is full.
    """
    digests = {arm: digest for row in new for arm, digest in row["adapters"].items()}
    names = {row["name"] for row in new}
    asked = {row["asked"] for row in new if "asked" in row}
    kept = [
        row
        for row in read(run)
        if row["name"] not in names
        and _same(row["adapters"], digests)
        and ("asked" not in row or not asked or row["asked"] in asked)
    ]
    scores = [*kept, *new]
    text = json.dumps({"format": FORMAT, "scores": scores}, indent=1, ensure_ascii=False, allow_nan=False)
    write_atomic(run / FILE, shown_json(text) + "\n")
    return scores


def current(run: Path) -> list[Row]:
    """The scores of the adapter that the run folder holds now; of others none."""
    scores = read(run)
    if not scores or not (run / "adapter" / WEIGHTS).is_file():
        return []
    digest = digest_of(run / "adapter")
    return [row for row in scores if digest in row["adapters"].get(FEDERATED, ())]


def _same(kept: Mapping[str, Any], now: Mapping[str, Any]) -> bool:
    return all(now.get(arm, digests) == digests for arm, digests in kept.items())
