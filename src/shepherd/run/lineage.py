"""What an adapter was trained on before a run went on from it: one record for each training.

A run that begins from the folder of another keeps that one's record, and all that led to it, in
`start/source.json`. A PEFT folder says nothing of how it was made.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from shepherd.errors import FolderError
from shepherd.io import paths
from shepherd.privacy.guarantee import Guarantee
from shepherd.run import claims, folder, hidden, ledger
from shepherd.run.log import read_rows
from shepherd.settings import MEMORY, WORLD, RunSettings, published

START, SOURCE = "start", "source.json"
"""The folder, in that of a run, with the copy of its first adapter; and the file in it that says of what."""
SFT = "sft"
"""The objective of instruction tuning."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Training:
    """One training: what of it a card for readers on other machines says."""

    run: str
    """Name of its folder."""
    data: str
    dataset: str = ""
    """Id of the data on the hub; "" if they are not from there."""
    objective: str = SFT
    rounds: int = 0
    spent: str = ""
    """What it says it has spent of privacy, in words; "" if it claims nothing."""
    guarantees: Mapping[str, Mapping[str, float | None]] = field(default_factory=dict)
    """The same in numbers: "privacy" of each client, "example_privacy" of each example, as in the log."""
    adapter: str = ""
    """SHA-256 of the weights that another run took of it; "" where none has yet."""


Row = Mapping[str, Any]
Part = TypeVar("Part")


def training(settings: RunSettings, rows: Sequence[Row], privacy: Row, of_examples: Row) -> Training:
    """The record of a run, from its run file, its log and its ledgers."""
    shown, source = published(settings), settings.data.source
    return Training(
        run=shown.output,
        data=shown.data.source,
        guarantees=_guarantees(privacy, of_examples),
        dataset=hub_id(source, WORLD, MEMORY) or "",
        objective=settings.tuning.objective.name,
        rounds=max((int(row["round"]) for row in rows), default=0),
        spent=" and ".join(_spent(privacy, of_examples)),
    )


def hub_id(name: str, *embedded: str) -> str | None:
    """The name where it is a Hugging Face id: not `embedded`, and no path (absolute once it is read)."""
    return name if paths.is_hub_id(name) and name not in embedded else None


def _spent(privacy: Row, of_examples: Row) -> Iterator[str]:
    for found, unit in ((privacy, "client"), (of_examples, "example")):
        if found:
            yield Guarantee.of(found).text(unit)


def _guarantees(privacy: Row, of_examples: Row | None) -> dict[str, dict[str, float | None]]:
    found = (("privacy", privacy), ("example_privacy", of_examples))
    return {key: Guarantee.of(each).row() for key, each in found if each}


def of_run(path: Path) -> tuple[Training, ...]:
    """The trainings that led to the adapter of the run in `path`, its own last; empty if there is no run.

    Args:
        path: a run folder, or the adapter's folder in it.

    Raises:
        FolderError: a file of the run is damaged, or a ledger of it is missing.
    """
    path = folder.run_of(path)
    if not folder.is_run(path):
        return ()
    named, rows = (
        folder.read_settings(path).model_copy(update={"output": str(path.absolute())}),
        read_rows(path),
    )
    hidden.require_ledgers(path, named, rows)
    spent = claims.spent(path, rows)
    return (*before(path), training(named, rows, *(spent.get(level, {}) for level in ledger.LEVELS)))


def source(path: Path) -> Mapping[str, str]:
    """The `file` that a run began with, and its `sha256`; empty if it began with a new adapter.

    Raises:
        FolderError: the file that says so is damaged.
    """
    return _read(path, lambda found: {key: str(found[key]) for key in ("file", "sha256")}, {})


def before(path: Path) -> tuple[Training, ...]:
    """The trainings that led to the adapter that the run in `path` began with; empty if nothing is known.

    Raises:
        FolderError: the file that says so is damaged.
    """
    return _read(path, _before, ())


def _before(found: Any) -> tuple[Training, ...]:
    kept = [Training(**each) for each in found.get("before", ())]
    # who wrote the record of the last one did not yet know what would be taken of it
    return (*kept[:-1], *(replace(last, adapter=str(found["sha256"])) for last in kept[-1:]))


def _read(path: Path, part: Callable[[Any], Part], none: Part) -> Part:
    """A part of the file that says what a run began with; `none` if it began with a new adapter."""
    file = path / START / SOURCE
    if not file.is_file():
        return none
    try:
        return part(json.loads(file.read_text(encoding="utf8")))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise FolderError(f"{file} is damaged ({error}); restore it from a copy") from error


def rows_of(trainings: Iterable[Training]) -> list[dict[str, Any]]:
    """The records as JSON has them."""
    return [asdict(each) for each in trainings]


def caveats(start: Row, before: Sequence[Training]) -> list[str]:
    """What the epsilon of a run does not speak of, because of the adapter that it began with, in sentences.

    Args:
        start: what `source` says of the run.
        before: the trainings that led to that adapter, as far as they are known.
    """
    return [
        *([_BEFORE] if start else []),
        *([_UNPROTECTED] if any(not each.spent for each in before) else []),
    ]


_BEFORE = (
    "The run began with an adapter that was tuned before: what that tuning spent is not counted here, and"
    " adds to this where the same clients took part."
)
_UNPROTECTED = (
    "A training before it claims no privacy: of the examples of that one, nothing that is said here holds."
)


def spent_before(trainings: Sequence[Training]) -> str:
    """What was spent before a run, as a sentence; "" if the run began with a new adapter."""
    spent = [f"{each.run} spent {each.spent}" for each in trainings if each.spent]
    if not spent:
        return ""
    return f"before this run, {', and '.join(spent)}, which adds up where the same clients took part"
