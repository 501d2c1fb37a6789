"""Find the arms in a run folder: where their adapters are, and what each was trained on."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from shepherd.compare import privacy
from shepherd.compare.folders import local_names
from shepherd.errors import FolderError
from shepherd.io.paths import short
from shepherd.io.progress import many
from shepherd.run import hidden, lineage
from shepherd.run.hidden import Hidden
from shepherd.run.log import read_rows
from shepherd.settings import RunSettings

BASE, FEDERATED, CENTRALISED, LOCAL = "base", "federated", "centralised", "local-"
BY_STEPS = "centralised-steps"
_TRAININGS = "seed-*"
MAX_SHOWN_CATEGORIES = 4

Counts = Mapping[str, Mapping[str, int]]
"""Client -> category -> examples."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Arm:
    """One way of training: its name, the folder of its adapter (None: no adapter), what it was trained on."""

    name: str
    path: Path | None
    says: str

    @property
    def client(self) -> str | None:
        """The client of a local arm; None for other arms."""
        return self.name.removeprefix(LOCAL) if self.name.startswith(LOCAL) else None


def trainings(path: Path, settings: RunSettings) -> dict[int, list[Arm]]:
    """The arms of the run in `path` by the seed of their training, the run's own seed first.

    Raises:
        FolderError: the run has neither a final adapter nor a checkpoint.
    """
    seeds = _json(path / "compare" / "comparison.json").get("seeds", [])
    numbers = (entry.name.removeprefix("seed-") for entry in (path / "compare").glob(_TRAININGS))
    later = sorted(int(number) for number in numbers if number.isdecimal() and int(number) > 0)
    found = {number: find(path, settings, number) for number in (0, *later)}
    return {
        seeds[number] if number < len(seeds) else settings.seed + number: arms
        for number, arms in found.items()
        if len(arms) > 1  # more than the base
    }


def find(path: Path, settings: RunSettings, number: int = 0) -> list[Arm]:
    """The arms of the run in `path`: base, the local ones, federated, centralised, then the variants.

    Args:
        number: of the training, where `shepherd compare` has repeated it with other seeds.

    Raises:
        FolderError: the run has neither a final adapter nor a checkpoint.
    """
    if not _has_adapter(path):
        raise FolderError(
            f"the run in {path} has finished no round yet; continue it with `shepherd resume {path}`"
        )
    category_counts, compared = _category_counts(path, hidden.of_folder(path)), _compared_arms(path)
    names = local_names(category_counts)
    entries = [entry for entry in _folders(path / "compare" / f"seed-{number}") if _has_adapter(entry)]
    below = {names.get(entry.name, unquote(entry.name)): entry for entry in entries}
    order = {LOCAL + client: place for place, client in enumerate(category_counts)}
    locals_ = sorted((n for n in below if n.startswith(LOCAL)), key=lambda n: (order.get(n, len(order)), n))
    pooled = sorted(name for name in below if name in (CENTRALISED, BY_STEPS))
    others = sorted({*below} - {*locals_, *pooled, FEDERATED})
    federated = below.get(FEDERATED) if number else path
    return [
        Arm(name=BASE, path=None, says=f"{short(settings.model.base)}, not tuned"),
        *(
            Arm(name=name, path=below[name], says=_says_local(name, category_counts, compared))
            for name in locals_
        ),
        *(
            Arm(name=FEDERATED, path=each, says=_says_federated(each, settings, category_counts))
            for each in filter(None, [federated])
        ),
        *(
            Arm(name=name, path=below[name], says=_says_centralised(name, category_counts, compared))
            for name in pooled
        ),
        *(
            Arm(name=name, path=below[name], says=_says_variant(name, compared, below[name]))
            for name in others
        ),
    ]


def of_folder(path: Path) -> Arm:
    """A PEFT folder, or another run, beside the arms of a run."""
    return Arm(name=path.resolve().name, path=path, says=f"the adapter in {short(str(path))}")


def _folders(path: Path) -> list[Path]:
    return [entry for entry in path.iterdir() if entry.is_dir()] if path.is_dir() else []


def _has_adapter(path: Path) -> bool:
    """Whether the folder is a PEFT adapter, or a run that has finished a round."""
    peft = [path / "adapter_config.json", path / "adapter" / "adapter_config.json"]
    return any(file.is_file() for file in peft) or bool(_folders(path / "checkpoints"))


def _category_counts(path: Path, hides: Hidden) -> Counts:
    """Examples by client and category, as far as no noise hides how many there are, or of which kinds.

    Empty if the run's data have been removed.
    """
    index = _json(path / "data" / "index.json")
    clients, counts = index.get("clients", []), {} if hides.clients else index.get("mixes", {})
    if hides.examples:
        counts = {client: {"": sum(mix.values())} for client, mix in counts.items()}
    return {client: counts.get(client, {}) for client in clients}


def _compared_arms(path: Path) -> Mapping[str, Mapping[str, Any]]:
    """The arms of comparison.json by name."""
    arms = _json(path / "compare" / "comparison.json").get("arms", [])
    return {arm["name"]: arm for arm in arms}


def _json(path: Path) -> Mapping[str, Any]:
    try:
        return dict(json.loads(path.read_text(encoding="utf8")))
    except (OSError, ValueError, TypeError):
        return {}


def _says_local(name: str, category_counts: Counts, compared: Mapping[str, Mapping[str, Any]]) -> str:
    arm = compared.get(name, {})
    client = arm.get("client") or name.removeprefix(LOCAL)
    mix = arm.get("categories") or category_counts.get(client, {})
    return f"{client} alone: {_count_text(mix)}" if mix else f"{client} alone"


def _says_centralised(name: str, category_counts: Counts, compared: Mapping[str, Mapping[str, Any]]) -> str:
    mix = compared.get(name, {}).get("categories") or _pooled(category_counts.values())
    fewer = ", for as many steps as a client takes" if name == BY_STEPS else ""
    return f"everybody's data in one place{fewer}" + (f": {_count_text(mix)}" if mix else "")


def _says_federated(path: Path, settings: RunSettings, category_counts: Counts) -> str:
    done = max((row["round"] for row in read_rows(path)), default=0)
    rounds = f"{done} of {settings.federation.rounds} rounds" if _is_unfinished(path) else many(done, "round")
    parts = [_who(category_counts), f"{settings.algorithm.name}, {rounds}"]
    return _with_privacy("; ".join(filter(None, parts)), path)


def _with_privacy(what: str, path: Path) -> str:
    """What an arm is, with what it has spent of privacy, and what that does not speak of."""
    if not (spent := privacy.phrases(privacy.spent(path))):
        return what
    caveats = lineage.caveats(lineage.source(path), lineage.before(path))
    return ". ".join(["; ".join([what, *spent]), *(each.removesuffix(".") for each in caveats)])


def _who(category_counts: Counts) -> str:
    mix = _pooled(category_counts.values())
    return f"{many(len(category_counts), 'client')}, {_count_text(mix)}" if mix else ""


def _says_variant(name: str, compared: Mapping[str, Mapping[str, Any]], path: Path) -> str:
    changed = ", ".join(compared.get(name, {}).get("overrides", []))
    what = f"federated with {changed}" if changed else "a federated variant"
    return _with_privacy(what, path)


def _is_unfinished(path: Path) -> bool:
    return not (path / "adapter").is_dir()


def _pooled(category_counts: Sequence[Mapping[str, int]] | Any) -> dict[str, int]:
    total: dict[str, int] = {}
    for mix in category_counts:
        for category, count in mix.items():
            total[category] = total.get(category, 0) + count
    return total


def _count_text(mix: Mapping[str, int]) -> str:
    """For example `210 examples of qa, poem and 3 more kinds`, the largest category first."""
    named = [category for category, _ in sorted(mix.items(), key=lambda item: -item[1]) if category]
    total = many(sum(mix.values()), "example")
    if not named:
        return total
    kinds = (
        named
        if len(named) <= MAX_SHOWN_CATEGORIES
        else [*named[: MAX_SHOWN_CATEGORIES - 1], f"{len(named) - MAX_SHOWN_CATEGORIES + 1} more kinds"]
    )
    return f"{total} of {' and '.join(filter(None, [', '.join(kinds[:-1]), kinds[-1]]))}"
