"""Benchmark tasks and refusals in a comparison: those scores of its folder that are of its own adapters."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from shepherd.compare.adapters import digests
from shepherd.compare.arms import Arm
from shepherd.compare.folders import COMPARISON, arm_of, compare_folder, comparison, write_json
from shepherd.data import data_folder
from shepherd.io import paths
from shepherd.run import score_file

Row = dict[str, Any]


def arms_of(run: Path) -> tuple[list[Arm], int]:
    """The arms of the finished comparison in a run folder, and its number of seeds; no arm if there is none.

    Raises:
        FolderError: a file of it is damaged.
    """
    found = comparison(run)
    if not found:
        return [], 1
    twins = paths.alike(data_folder.load(run / "data").clients)
    return [arm_of(row, twins) for row in found["arms"]], len(found["seeds"])


def scores(run: Path, arms: Sequence[Arm], seeds: int) -> list[Row]:
    """The rows of evaluation.json that were scored with the adapters that these arms have now.

    A row need not have all arms; one with another adapter, or an arm that is not among them, is left out.

    Raises:
        FolderError: evaluation.json is damaged, or an adapter is not there.
    """
    rows = score_file.read(run)
    of_arms = digests(run, arms, seeds) if rows else {}
    return [row for row in rows if _is_of(row.get("adapters") or {"": []}, of_arms)]


def _is_of(scored: Row, of_arms: Row) -> bool:
    return all(of_arms.get(arm) == found for arm, found in scored.items())


def join(run: Path) -> Row | None:
    """Write the scores into the finished comparison of a run folder, which is returned; None without one.

    Raises:
        FolderError: as for `scores`, or comparison.json cannot be read or written.
    """
    arms, seeds = arms_of(run)
    if not arms:
        return None
    found = comparison(run)
    joined = {**found, "scores": scores(run, arms, seeds)}
    if joined != found:
        write_json(compare_folder(run) / COMPARISON, joined)
    return joined
