"""What noise hides of a run: by its run file and its log, so that a ledger that is missing opens nothing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shepherd import plugins, transforms
from shepherd.errors import FolderError
from shepherd.run import checkpoint, folder, ledger
from shepherd.run.log import read_rows
from shepherd.settings import RunSettings

Row = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Hidden:
    """What may not appear in a report, card or comparison of a run."""

    clients: bool
    """Whether noise hides each client, with all that it holds, and who takes part."""
    examples: bool
    """Whether it hides each example; how many of them a client has is public then."""

    def __bool__(self) -> bool:
        return self.clients or self.examples


def of_run(settings: RunSettings, rows: Sequence[Row], kept: Row) -> Hidden:
    """What noise hides of a run.

    A transform from outside the package is not imported for this: what it hides is known by the log, and
    before there is a round in it, it may hide all.

    Args:
        rows: its log.
        kept: its ledger of clients, as far as there is one.
    """
    unknown = any(table.name not in plugins.names(transforms) for table in settings.transforms)
    undecided = unknown and not any(row["round"] for row in rows)
    levels = set(_levels(settings, rows))
    return Hidden(
        clients=ledger.LEDGER in levels or bool(kept) or undecided, examples=ledger.OF_EXAMPLES in levels
    )


def of_folder(path: Path) -> Hidden:
    """What noise hides of the run in a folder.

    Raises:
        FolderError: there is no run in it, or a file of it is damaged.
    """
    return of_run(folder.planned(path), read_rows(path), ledger.read(path))


def require_ledgers(path: Path, settings: RunSettings, rows: Sequence[Row]) -> None:
    """Raise FolderError if a ledger is missing of a run that has finished a round: it says what was spent."""
    if not (any(row["round"] for row in rows) or any(checkpoint.kept(path / "checkpoints"))):
        return
    for name in _levels(settings, rows):
        if not (path / name).is_file():
            whose = "clients'" if name == ledger.LEDGER else "examples'"
            raise FolderError(
                f"{path / name} is missing, which says what the rounds of this run have spent of its {whose}"
                " privacy, and nothing is said of the run without it; restore it from a copy"
            )


def _levels(settings: RunSettings, rows: Sequence[Row]) -> Iterator[str]:
    """The ledgers that a run keeps, as far as its run file and its log tell."""
    if any(ledger.CLIENTS in row for row in rows) or plugins.noisy_table(settings) is not None:
        yield ledger.LEDGER
    if settings.privacy.examples is not None or any(ledger.EXAMPLES in row for row in rows):
        yield ledger.OF_EXAMPLES
