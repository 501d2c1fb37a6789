"""A site's privacy ledger: what its visits have spent of its privacy, over all runs, and what is left.

    HOME/privacy/DIGEST.jsonl         one line for each visit, for each of the site's data sources
    HOME/runs/privacy/DIGEST.json     how many lines it has, and the SHA-256 of them

A line is appended and flushed before its visit begins, so a visit that is killed has spent all the same. The
file is kept for as long as the data are: the noise of one run does not hide what another revealed. A line
that a crash left unfinished belongs to a visit that never began; any other that cannot be read stops the
site. So does a ledger that is missing, or does not begin with the lines that were counted: the count is in
another folder, which is lost less easily together with it.

DIGEST is of the source, whatever is read of it. A visit of a folder counts for each file in it, and that of
a file for each folder that it is in: what is entered for the one is read for the other. An earlier version
had names of 16 digits, of a source's configuration and part as well, and then names of an id of the hub as it
was written; what it entered is still read, and counts.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from shepherd.core.spending import FixedSize, Poisson, Shuffled, Spending, Turns
from shepherd.errors import FolderError, SettingsError
from shepherd.io import lock, private
from shepherd.io.atomic import disk_errors, write_atomic
from shepherd.io.phrases import delta_text, epsilon_text
from shepherd.privacy.example_level import epsilon_of
from shepherd.silos.site.site_settings import SiteDataTable

Unit = Literal["example", "client"]
"""Who is protected: each example of the site, or the site with all of its examples."""
FOLDER, COUNTS = "privacy", "runs/privacy"
"""Folders of the ledgers and of the counts of their lines."""
NAME_DIGITS, FORMER_DIGITS = 32, 16
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


@dataclass(frozen=True, slots=True)
class Ledger:
    """The files of a data source's ledger."""

    path: Path
    """The file that visits are entered into."""
    others: tuple[Path, ...] = ()
    """Ledgers that count for this source as well: of folders that it is in, of what is in it, and of an
    earlier version. Nothing is added to them."""


def ledger_of(home: Path, data: SiteDataTable) -> Ledger:
    """The ledger of a data source, whatever its configuration and part, which may hold the same examples.

    Two links to one file are one source. So are two spellings of an id of the hub, where capital and small
    letters are the same.
    """
    is_path = os.path.isabs(data.source)
    source = os.path.realpath(data.source) if is_path else data.source.strip().strip("/").casefold()
    folder, name = home / FOLDER, _digest(source)
    others = sorted(_others(home, data) - {name})
    return Ledger(folder / f"{name}.jsonl", tuple(folder / f"{each}.jsonl" for each in others))


def _digest(source: str) -> str:
    return hashlib.sha256(os.fsencode(source)).hexdigest()[:NAME_DIGITS]


def _others(home: Path, data: SiteDataTable) -> set[str]:
    """Names of ledgers that are here, or were counted here, and may be of examples of this source.

    In an earlier version an id of the hub was first joined to the folder in which the site was started.
    Nobody knows that folder now, so every such ledger counts. Later it was taken as it was written, so the
    ledger counts that has the name of what is written now.
    """
    files = {each.stem for folder in (FOLDER, COUNTS) for each in (home / folder).glob("*.json*")}
    former = {each for each in files if re.fullmatch(rf"[0-9a-f]{{{FORMER_DIGITS}}}", each)}
    if not os.path.isabs(data.source):
        return former | {_digest(data.source)} & files
    if not files:  # a large folder takes a while
        return set()
    paths = {os.path.abspath(data.source), *_related(data.source)}
    named = {
        hashlib.sha256(json.dumps([path, config, part]).encode()).hexdigest()[:FORMER_DIGITS]
        for path in (paths if former else ())
        for config in (data.config, None)
        for part in (data.part, "train")
    }
    return (named | set(map(_digest, paths))) & files


def _related(source: str) -> set[str]:
    """A path, those of the folders that it is in, and those of everything in it, with links followed."""
    found: set[str] = set()
    left = [os.path.realpath(source)]
    while left:
        root = left.pop()
        if root in found:
            continue
        found |= {root, *map(str, Path(root).parents)}
        for here, folders, names in os.walk(root):  # what cannot be listed is not read as data, either
            for path in (os.path.join(here, name) for name in (*folders, *names)):
                if os.path.islink(path):
                    left.append(os.path.realpath(path))
                else:
                    found.add(path)
    return found


def read(ledger: Ledger) -> list[Entry]:
    """All visits so far, those of an earlier version first, without a line that was never finished.

    Raises:
        FolderError: a line cannot be read or is lost, so that nobody knows what is left.
    """
    return [
        _entry(path, number, line)
        for path in (*ledger.others, ledger.path)
        for number, line in enumerate(_lines(path), 1)
    ]


def count_lines(ledger: Ledger) -> list[Entry]:
    """All visits so far. Their lines are counted, so that the loss of any is noticed from now on.

    Raises:
        FolderError: as for `read`, or the count cannot be written.
    """
    entries = read(ledger)
    if entries:
        with disk_errors(ledger.path.parent), _locked(ledger.path):
            _count(ledger)
    return entries


def epsilon(entries: Sequence[Entry], unit: Unit, delta: float, more: Sequence[Spending] = ()) -> float:
    """Epsilon of all visits in a ledger, and of `more`; infinity if the accountant can show none."""
    spent = [*(entry.spent for entry in entries if entry.unit == unit), *more]
    try:
        return epsilon_of(_merged(spent), delta)
    except SettingsError:  # two kinds of neighbours, for which there is no one number
        return float("inf")


def most_examples(ledger: Ledger) -> int:
    """The most examples that a visit so far was drawn from; 0 without visits.

    A run may use fewer of them, as by a small `data.max_tokens`, which must not make delta larger.
    """
    return max((entry.examples for entry in read(ledger)), default=0)


def refusal(ledger: Ledger, budgets: Sequence[Budget], more: Sequence[tuple[Unit, Spending]]) -> str | None:
    """Why a visit may not spend this, as what it would come to; None if every budget allows it."""
    return _refusal(read(ledger), budgets, more)


def spend(ledger: Ledger, budgets: Sequence[Budget], entries: Sequence[Entry]) -> str | None:
    """Enter a visit, with one entry for each unit, unless a budget does not allow it; see `refusal`.

    Checked and appended under one lock, and on the disk when this returns.

    Raises:
        FolderError: the ledger cannot be read or written, so the visit must not begin.
    """
    with disk_errors(ledger.path.parent), _locked(ledger.path) as handle:
        refused = _refusal(read(ledger), budgets, [(entry.unit, entry.spent) for entry in entries])
        if refused is None:
            _append(handle, "".join(f"{entry.line()}\n" for entry in entries).encode())
            _count(ledger)  # after the lines: those that a crash leaves uncounted are of no visit
    return refused


@contextmanager
def _locked(path: Path) -> Iterator[int]:
    """Open a file for appending, making it if it is missing, and lock it until the end of the block."""
    private.make(path.parent)
    new = not path.exists()
    handle = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | private.NO_LINK, private.FILE)
    try:
        if new:
            private.sync(path.parent)
        lock.wait_for(handle)  # released when the handle is closed
        yield handle
    finally:
        os.close(handle)


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
                f"a visit after which epsilon is {epsilon_text(found)} at delta {delta_text(budget.delta)}"
                f" for {'each example' if budget.unit == 'example' else 'this site'}, over all runs so far"
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


# lost lines -------------------------------------------------------------------------------------------------

_CLOSED = "restore it from a copy: until then every visit is refused"


@dataclass(frozen=True, slots=True)
class _Count:
    """How many lines a file had, and what they were."""

    lines: int
    sha256: str


def _count_of(lines: Sequence[bytes]) -> _Count:
    return _Count(len(lines), hashlib.sha256(b"\n".join(lines)).hexdigest())


def _lines(path: Path) -> list[bytes]:
    """The lines of a file, of which those that were counted have to be there."""
    counted = _read_count(path)  # first, since another process may add lines, and count them, in between
    try:
        lines = path.read_bytes().split(b"\n")[:-1]
    except FileNotFoundError:
        lines = []
    except OSError as error:
        raise FolderError(f"privacy ledger {path} cannot be read ({error.strerror}); {_CLOSED}") from error
    if _count_of(lines[: counted.lines]) != counted:
        raise FolderError(
            f"privacy ledger {path} {'was cut or changed' if lines else 'is missing'}, and by"
            f" {_count_place(path)} it had {counted.lines} lines; restore it from a copy of that time, or if"
            " none of its examples is trained on again, delete both: until then every visit is refused"
        )
    return lines


def _count(ledger: Ledger) -> None:
    """Count the lines of all files of a ledger, under its lock."""
    for path in (*ledger.others, ledger.path):
        found, place = _count_of(_lines(path)), _count_place(path)
        if found != _read_count(path):
            private.make(place.parent)
            write_atomic(place, json.dumps(asdict(found)))


def _count_place(path: Path) -> Path:
    return path.parent.parent / COUNTS / f"{path.stem}.json"


def _read_count(path: Path) -> _Count:
    place = _count_place(path)
    try:
        table = json.loads(place.read_bytes())
        return _Count(_whole(table["lines"]), str(table["sha256"]))
    except FileNotFoundError:
        return _count_of(())
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise FolderError(f"{place} cannot be read, which counts the lines of {path}; {_CLOSED}") from error


# lines ------------------------------------------------------------------------------------------------------


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
