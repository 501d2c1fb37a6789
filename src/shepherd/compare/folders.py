"""Files of a comparison, inside the folder of its run.

runs/NAME/                    the run itself: the federated arm of the first seed
runs/NAME/compare/
  plan.json                   how the arms are matched, and the variants' overrides
  comparison.json             the results
  seed-0/ARM/                 the adapter of a local arm or of the centralised one, with tuned.json
  seed-0/VARIANT/             a run of this variant
  seed-1/federated/           the run with another seed
  seed-0/scores/ARM.json      scores of the arm, question by question
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from shepherd.compare.arms import LOCAL, Arm
from shepherd.errors import FolderError
from shepherd.io import paths, private
from shepherd.io.atomic import write_atomic
from shepherd.settings import CompareTable
from shepherd.visible import shown_json

VERDICTS = "verdicts"
"""Folder of the judge's replies."""
PLAN, COMPARISON, TUNED = "plan.json", "comparison.json", "tuned.json"


def compare_folder(run: Path) -> Path:
    """Folder of the comparison of a run."""
    return run / "compare"


def seed_folder(run: Path, number: int) -> Path:
    """Folder of the `number`-th seed, from 0."""
    return compare_folder(run) / f"seed-{number}"


def arm_folder(run: Path, number: int, arm: Arm) -> Path:
    """Folder of an arm: a run folder if the arm is a run, else the folder of its adapter."""
    if arm.kind == "federated" and number == 0:
        return run
    return seed_folder(run, number) / _file_name(arm)


def scores_file(run: Path, number: int, arm: Arm) -> Path:
    """File of an arm's scores."""
    return seed_folder(run, number) / "scores" / f"{_file_name(arm)}.json"


def arm_of(row: Mapping[str, Any], twins: Collection[str]) -> Arm:
    """The arm of a row of comparison.json; `twins` are the clients whose names differ in case alone."""
    return Arm(
        name=row["name"],
        kind=row["kind"],
        client=row["client"],
        overrides=tuple(row["overrides"]),
        twin=row["client"] in twins,
    )


def local_names(clients: Collection[str]) -> dict[str, str]:
    """The name of each client's own arm, by that of its folder."""
    twins = paths.alike(clients)
    local = [Arm(name=LOCAL + each, kind="local", client=each, twin=each in twins) for each in clients]
    return {_file_name(arm): arm.name for arm in local}


def _file_name(arm: Arm) -> str:
    """A client may be called anything, in more letters than a file has, or as another but for a capital."""
    return paths.file_name(arm.name, digested=arm.twin)


def read_json(path: Path) -> dict[str, Any] | None:
    """Read a JSON object from a file; None if there is no file.

    Raises:
        FolderError: the file is unreadable.
    """
    try:
        return dict(json.loads(path.read_text(encoding="utf8")))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError) as error:
        raise FolderError(f"{path} cannot be read ({error}); delete it, and it will be made again") from error


def comparison(run: Path) -> dict[str, Any]:
    """The finished comparison in a run folder; empty if there is none.

    Raises:
        FolderError: comparison.json is unreadable.
    """
    found = read_json(compare_folder(run) / COMPARISON) or {}
    return found if found.get("finished") else {}


def write_json(path: Path, value: Mapping[str, Any]) -> Path:
    """Write a JSON object atomically, creating parent folders.

    Raises:
        FolderError: the disk is full, or the folder cannot be written.
    """
    private.make(path.parent)
    text = json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False)
    return write_atomic(path, shown_json(text) + "\n")


def keep_plan(run: Path, match: str, own: CompareTable, arms: Sequence[Arm]) -> None:
    """Write how the arms are trained, so that a later call does not mix two ways.

    Args:
        own: batch size and rate of the arms that are matched by examples.

    Raises:
        FolderError: the folder holds a comparison that was made another way.
    """
    path = compare_folder(run) / PLAN
    variants = {arm.name: list(arm.overrides) for arm in arms if arm.kind == "variant"}
    asked = own.model_dump(exclude_none=True)
    plan = {"compare": {}, **(read_json(path) or {"match": match, "compare": asked, "variants": {}})}
    if plan.get("match") != match or "variants" not in plan:
        was = plan.get("match")
        raise FolderError(
            f"{path.parent} holds a comparison matched by {was}; give --match {was}, or move that folder away"
        )
    if plan["compare"] != asked:
        raise FolderError(
            f"{path.parent} holds a comparison with another [compare] in the run file; set it back, or move"
            " that folder away"
        )
    for name, overrides in variants.items():
        if plan["variants"].get(name, overrides) != overrides:
            raise FolderError(
                f"{path.parent} holds an arm {name!r} with {' '.join(plan['variants'][name])}; "
                "give the new one another name"
            )
    write_json(path, {"match": match, "compare": asked, "variants": {**plan["variants"], **variants}})
