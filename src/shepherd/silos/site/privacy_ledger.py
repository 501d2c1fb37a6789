"""A site's privacy ledger: what its visits have spent of its privacy, over all runs, and what is left.

    HOME/privacy/0123456789abcdef.jsonl    one line for each visit, for each of the site's data sources

A line is appended and flushed before its visit begins, so a visit that is killed has spent all the same. The
file is kept for as long as the data are: the noise of one run does not hide what another revealed. A line
that a crash left unfinished belongs to a visit that never began; any other that cannot be read stops the
site.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from shepherd.core.spending import FixedSize, Poisson, Shuffled, Spending, Turns
from shepherd.errors import FolderError, SettingsError
from shepherd.io import lock, private
from shepherd.io.atomic import disk_errors
from shepherd.privacy.example_level import epsilon_of
from shepherd.silos.site.site_settings import SiteDataTable

Unit = Literal["example", "client"]
"""Who is protected: each example of the site, or the site with all of its examples."""
FOLDER = "privacy"
NAME_DIGITS = 16
SAMPLINGS: dict[str, type[Any]] = {kind.__name__: kind for kind in (Poisson, FixedSize, Turns, Shuffled)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One visit in the ledger."""

    when: str
    """ISO 8601, in the site's local time."""
    run: str
    round: int
    id: str
    """Id of the request."""
    unit: Unit
    spent: Spending
    examples: int = 0
    """Examples that the site trained on in this run; 0 in lines of an earlier version."""

    def line(self) -> str:
        """The entry as a line of the ledger."""
        sampling = {"kind": type(self.spent.sampling).__name__, **asdict(self.spent.sampling)}
        spent = {"noise": self.spent.noise, "sampling": sampling, "steps": self.spent.steps}
        if self.spent.levels:
            spent["levels"] = self.spent.levels
        plain = {name: getattr(self, name) for name in ("when", "run", "round", "id", "unit", "examples")}
        return json.dumps({**plain, **spent}, allow_nan=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """What the owner allows to spend of one unit's privacy, over all runs."""

    unit: Unit
    epsilon: float
    delta: float


def place(home: Path, data: SiteDataTable) -> Path:
    """The ledger of a data source; another file, configuration or part has another one."""
    named = json.dumps([os.path.abspath(data.source), data.config, data.part])
    return home / FOLDER / f"{hashlib.sha256(named.encode()).hexdigest()[:NAME_DIGITS]}.jsonl"


def read(path: Path) -> list[Entry]:
    """All visits so far, oldest first, without a line that was never finished.

    Raises:
        FolderError: a line cannot be read, so that nobody knows what is left.
    """
    try:
        text = path.read_bytes()
    except FileNotFoundError:
        return []
    except OSError as error:
        raise FolderError(f"privacy ledger {path} cannot be read ({error.strerror}); {_CLOSED}") from error
    whole, _, _ = text.rpartition(b"\n")
    return [_entry(path, number, line) for number, line in enumerate(whole.split(b"\n"), 1) if whole]


def epsilon(entries: Sequence[Entry], unit: Unit, delta: float, more: Sequence[Spending] = ()) -> float:
    """Epsilon of all visits in a ledger, and of `more`; infinity if the accountant can show none."""
    spent = [*(entry.spent for entry in entries if entry.unit == unit), *more]
    try:
        return epsilon_of(_merged(spent), delta)
    except SettingsError:  # two kinds of neighbours, for which there is no one number
        return float("inf")


def most_examples(path: Path) -> int:
    """The most examples that a visit so far was drawn from; 0 without visits.

    A run may use fewer of them, as by a small `data.max_tokens`, which must not make delta larger.
    """
    return max((entry.examples for entry in read(path)), default=0)


def refusal(path: Path, budgets: Sequence[Budget], more: Sequence[tuple[Unit, Spending]]) -> str | None:
    """Why a visit may not spend this, as what it would come to; None if every budget allows it."""
    return _refusal(read(path), budgets, more)


def spend(path: Path, budgets: Sequence[Budget], entries: Sequence[Entry]) -> str | None:
    """Enter a visit, with one entry for each unit, unless a budget does not allow it; see `refusal`.

    Checked and appended under one lock, and on the disk when this returns.

    Raises:
        FolderError: the ledger cannot be read or written, so the visit must not begin.
    """
    with disk_errors(path.parent):
        private.make(path.parent)
        new = not path.exists()
        handle = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | private.NO_LINK, private.FILE)
        try:
            lock.wait_for(handle)  # released when the handle is closed
            refused = _refusal(read(path), budgets, [(entry.unit, entry.spent) for entry in entries])
            if refused is None:
                _append(handle, "".join(f"{entry.line()}\n" for entry in entries).encode())
        finally:
            os.close(handle)
        if new:
            private.sync(path.parent)
    return refused


def _append(handle: int, lines: bytes) -> None:
    size = os.fstat(handle).st_size
    kept = os.pread(handle, size, 0).rfind(b"\n") + 1
    if kept < size:  # an unfinished line, whose visit never began
        os.ftruncate(handle, kept)
    try:
        while lines:
            lines = lines[os.write(handle, lines) :]
        os.fsync(handle)
    except OSError:
        os.ftruncate(handle, kept)
        raise


def _refusal(
    entries: Sequence[Entry], budgets: Sequence[Budget], more: Sequence[tuple[Unit, Spending]]
) -> str | None:
    for budget in budgets:
        own = [spent for unit, spent in more if unit == budget.unit]
        found = epsilon(entries, budget.unit, budget.delta, own)
        if not found <= budget.epsilon:  # NaN fails closed
            return (
                f"a visit after which epsilon is {found:.3g} at delta {budget.delta:.2g} for"
                f" {'an example' if budget.unit == 'example' else 'this site'}, over all runs so far"
            )
    return None


def _merged(spent: Sequence[Spending]) -> tuple[Spending, ...]:
    """Steps of one kind together, in a fixed order, so that equal ledgers are counted once."""
    steps: dict[Spending, int] = {}
    for each in spent:
        key = replace(each, steps=0)
        steps[key] = steps.get(key, 0) + each.steps
    merged = [replace(each, steps=count) for each, count in steps.items()]
    return tuple(sorted(merged, key=repr))


_CLOSED = "restore it from a copy: until then every visit is refused"


def _entry(path: Path, number: int, line: bytes) -> Entry:
    try:
        row = json.loads(line)
        sampling = dict(row["sampling"])
        kind = SAMPLINGS[sampling.pop("kind")]
        unit: Unit = {"example": "example", "client": "client"}[row["unit"]]  # type: ignore[assignment]
        return Entry(
            when=str(row["when"]),
            run=str(row["run"]),
            round=_whole(row["round"]),
            id=str(row["id"]),
            unit=unit,
            examples=_whole(row.get("examples", 0)),
            spent=Spending(
                noise=float(row["noise"]),
                sampling=kind(**sampling),
                steps=_whole(row["steps"]),
                levels=_whole(row.get("levels", 0)),
            ),
        )
    except (ValueError, TypeError, KeyError, AttributeError, SettingsError) as error:
        raise FolderError(f"line {number} of privacy ledger {path} cannot be read; {_CLOSED}") from error


def _whole(number: object) -> int:
    if type(number) is not int:
        raise TypeError
    return number
