"""Which arms a run folder holds, where their adapters lie, and what each was trained on."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from shepherd import folder
from shepherd.compare.folders import local_names
from shepherd.errors import FolderError
from shepherd.paths import short
from shepherd.progress import many
from shepherd.settings import RunSettings

BASE, FEDERATED, CENTRALISED, LOCAL = "base", "federated", "centralised", "local-"
BY_STEPS = "centralised-steps"
COMPARED = Path("compare", "seed-0")
SHOWN = 4  # categories that a heading names

Mixes = Mapping[str, Mapping[str, int]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Arm:
    """One way of training: its name, where its adapter lies (None: no adapter), what it was trained on."""

    name: str
    path: Path | None
    says: str

    @property
    def client(self) -> str | None:
        """The client whose own data a local arm was trained on."""
        return self.name.removeprefix(LOCAL) if self.name.startswith(LOCAL) else None


def find(path: Path, settings: RunSettings) -> list[Arm]:
    """The arms of the run in `path`: base, the local ones, federated, centralised, then the variants.

    Raises:
        FolderError: the run has neither a final adapter nor a checkpoint.
    """
    if not _answers(path):
        raise FolderError(f"the run in {path} has finished no round yet; go on with `shepherd resume {path}`")
    mixes, told = _mixes(path), _told(path)
    names = local_names(mixes)
    entries = [entry for entry in _entries(path / COMPARED) if _answers(entry)]
    below = {names.get(entry.name, unquote(entry.name)): entry for entry in entries}
    order = {LOCAL + client: place for place, client in enumerate(mixes)}
    locals_ = sorted((n for n in below if n.startswith(LOCAL)), key=lambda n: (order.get(n, len(order)), n))
    pooled = sorted(name for name in below if name in (CENTRALISED, BY_STEPS))
    others = sorted({*below} - {*locals_, *pooled})
    return [
        Arm(name=BASE, path=None, says=f"{short(settings.model.base)}, not tuned"),
        *(Arm(name=name, path=below[name], says=_of_client(name, mixes, told)) for name in locals_),
        Arm(name=FEDERATED, path=path, says=_of_run(path, settings, mixes)),
        *(Arm(name=name, path=below[name], says=_of_all(name, mixes, told)) for name in pooled),
        *(Arm(name=name, path=below[name], says=_of_variant(name, told)) for name in others),
    ]


def _entries(path: Path) -> list[Path]:
    return [entry for entry in path.iterdir() if entry.is_dir()] if path.is_dir() else []


def _answers(path: Path) -> bool:
    """Whether an adapter lies there: a PEFT folder, or a run that has finished a round."""
    peft = [path / "adapter_config.json", path / "adapter" / "adapter_config.json"]
    return any(file.is_file() for file in peft) or bool(_entries(path / "checkpoints"))


def _mixes(path: Path) -> Mixes:
    """Client -> category -> examples; a run's data may have gone, its adapters answer all the same."""
    index = _json(path / "data" / "index.json")
    clients, mixes = index.get("clients", []), index.get("mixes", {})
    return {client: mixes.get(client, {}) for client in clients}


def _told(path: Path) -> Mapping[str, Mapping[str, Any]]:
    """What the comparison wrote of each arm."""
    arms = _json(path / "compare" / "comparison.json").get("arms", [])
    return {arm["name"]: arm for arm in arms}


def _json(path: Path) -> Mapping[str, Any]:
    try:
        return dict(json.loads(path.read_text(encoding="utf8")))
    except (OSError, ValueError, TypeError):
        return {}


def _of_client(name: str, mixes: Mixes, told: Mapping[str, Mapping[str, Any]]) -> str:
    arm = told.get(name, {})
    client = arm.get("client") or name.removeprefix(LOCAL)
    mix = arm.get("categories") or mixes.get(client, {})
    return f"{client} alone: {_counted(mix)}" if mix else f"{client} alone"


def _of_all(name: str, mixes: Mixes, told: Mapping[str, Mapping[str, Any]]) -> str:
    mix = told.get(name, {}).get("categories") or _pooled(mixes.values())
    fewer = ", for as many steps as a client takes" if name == BY_STEPS else ""
    return f"everybody's data in one place{fewer}" + (f": {_counted(mix)}" if mix else "")


def _of_run(path: Path, settings: RunSettings, mixes: Mixes) -> str:
    done = max((row["round"] for row in folder.read_rows(path)), default=0)
    going = f"{done} of {settings.federation.rounds} rounds" if _going(path) else many(done, "round")
    mix = _pooled(mixes.values())
    who = f"{many(len(mixes), 'client')}, {_counted(mix)}; " if mix else ""
    return f"{who}{settings.algorithm.name}, {going}"


def _of_variant(name: str, told: Mapping[str, Mapping[str, Any]]) -> str:
    changed = ", ".join(told.get(name, {}).get("overrides", []))
    return f"federated with {changed}" if changed else "a federated variant"


def _going(path: Path) -> bool:
    return not (path / "adapter").is_dir()


def _pooled(mixes: Sequence[Mapping[str, int]] | Any) -> dict[str, int]:
    total: dict[str, int] = {}
    for mix in mixes:
        for category, count in mix.items():
            total[category] = total.get(category, 0) + count
    return total


def _counted(mix: Mapping[str, int]) -> str:
    """`210 examples of qa, poem and 3 more kinds`, the largest first."""
    named = [category for category, _ in sorted(mix.items(), key=lambda item: -item[1]) if category]
    total = many(sum(mix.values()), "example")
    if not named:
        return total
    kinds = named if len(named) <= SHOWN else [*named[: SHOWN - 1], f"{len(named) - SHOWN + 1} more kinds"]
    return f"{total} of {' and '.join(filter(None, [', '.join(kinds[:-1]), kinds[-1]]))}"
