"""Adapters of arms, and digests that identify them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from shepherd.compare.arms import BASE, START, UNTRAINED, Arm
from shepherd.compare.folders import arm_folder
from shepherd.core import Adapter
from shepherd.model import files
from shepherd.model.base import Base
from shepherd.run import lineage
from shepherd.run.answerer import adapter_of
from shepherd.run.score_file import digest_of


def arm_adapter(run: Path, number: int, arm: Arm, base: Base) -> Adapter | None:
    """Read the adapter of a trained arm; None is the base alone."""
    path = arm_folder(run, number, arm)
    match arm.kind:
        case "base":
            return None
        case "start":
            return files.read(run / lineage.START, base)
        case "federated" | "variant":
            return adapter_of(path, base)
        case _:
            return files.read(path, base)


def digest(run: Path, number: int, arm: Arm) -> str:
    """Digest of an arm's adapter file, which identifies the weights that scores belong to."""
    if arm.name == BASE:
        return BASE
    if arm.name == START:
        return digest_of(run / lineage.START)
    path = arm_folder(run, number, arm)
    return digest_of(path / "adapter" if arm.kind in ("federated", "variant") else path)


def digests(run: Path, arms: Sequence[Arm], seeds: int) -> dict[str, list[str]]:
    """Digests of the adapters of arms, one a seed; what is not trained has one for all.

    Raises:
        FolderError: an adapter is not there.
    """
    return {
        arm.name: [digest(run, n, arm) for n in range(1 if arm.name in UNTRAINED else seeds)] for arm in arms
    }
