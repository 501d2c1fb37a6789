"""What reading rows found besides examples, counted: what is not read, what is refused, what is changed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Self

from shepherd.io.progress import many
from shepherd.visible import shown_line

MOST_SHOWN = 12
"""Of more reasons than this, the commonest are shown, and how many there are besides."""
NAME = 60
"""Letters of a field's name that are shown; a longer one may be a row in the place of the header."""
FEW, RARE = 2, 0.01
"""A word that stands for nothing is pointed out from this many rows, and this share of them, on."""


@dataclass(frozen=True, slots=True)
class Tally:
    """How many rows something is true of, and where the first of them is."""

    rows: int
    first: str


Tallies = Mapping[str, Tally]


@dataclass(frozen=True, slots=True, kw_only=True)
class Notes:
    """Counts over rows: `unread` by field, `refused` by reason, `changed` and `seen` by what they are.

    rows: how many were read. refused: rows that were skipped. changed: what of a row that was read is left
    out, masked or chosen. seen: texts that are trained as they are, and may not be meant so. empty: words
    that may stand for nothing, by field and word.
    """

    rows: int = 0
    unread: Tallies = field(default_factory=dict)
    refused: Tallies = field(default_factory=dict)
    changed: Tallies = field(default_factory=dict)
    seen: Tallies = field(default_factory=dict)
    empty: Tallies = field(default_factory=dict)

    @classmethod
    def together(cls, parts: Iterable[Notes]) -> Self:
        """Those of several files as one, first places being those of the first file."""
        parts = list(parts)
        tallies = {
            name: added(getattr(part, name) for part in parts)
            for name in ("unread", "refused", "changed", "seen", "empty")
        }
        return cls(rows=sum(part.rows for part in parts), **tallies)

    def plain(self) -> dict[str, Any]:
        """As JSON has it."""
        return asdict(self)

    @classmethod
    def of(cls, plain: Mapping[str, Any]) -> Self:
        """What `plain` gave; older run folders have none."""
        tallies = {
            name: {what: Tally(**tally) for what, tally in found.items()}
            for name, found in plain.items()
            if name != "rows"
        }
        return cls(rows=plain.get("rows", 0), **tallies)

    def sentences(self) -> list[str]:
        """What a person should know of it, a sentence each."""
        said = []
        if self.unread:
            fields = [f"{_name(name)} (in {many(tally.rows, 'row')})" for name, tally in self.unread.items()]
            said.append(f"filled and not read: {_listed(fields)}; map a field that you want with data.fields")
        said += [
            f"{many(tally.rows, 'row')} skipped: {shown_line(reason)} (the first: {shown_line(tally.first)})"
            for reason, tally in _commonest(self.refused)
        ]
        rest = len(self.refused) - MOST_SHOWN
        if rest > 0:
            said.append(f"rows are skipped for {many(rest, 'other reason')}, which the run folder lists")
        said += [
            f"in {many(tally.rows, 'row')} {shown_line(what)} (the first: {shown_line(tally.first)})"
            for what, tally in (*_commonest(self.changed), *_commonest(self.seen))
        ]
        said += [
            f"in {tally.rows:,} of {many(self.rows, 'row')} {shown_line(what)}, which is read as text (the"
            f" first: {shown_line(tally.first)}); empty these fields if the word stands for nothing"
            for what, tally in _commonest(self.empty)
            if tally.rows >= max(FEW, RARE * self.rows)
        ]
        return said


def added(parts: Iterable[Tallies]) -> Tallies:
    """The sum of several tallies; of each thing, the first place that is named.

    >>> added([{"a": Tally(1, "x")}, {"a": Tally(2, "y"), "b": Tally(1, "z")}])
    {'a': Tally(rows=3, first='x'), 'b': Tally(rows=1, first='z')}
    """
    found: dict[str, Tally] = {}
    for part in parts:
        for what, tally in part.items():
            before = found.get(what)
            found[what] = tally if before is None else Tally(before.rows + tally.rows, before.first)
    return found


def _commonest(tallies: Tallies) -> list[tuple[str, Tally]]:
    return sorted(tallies.items(), key=lambda item: -item[1].rows)[:MOST_SHOWN]


def _name(name: str) -> str:
    return shown_line(name if len(name) <= NAME else name[:NAME] + "...")


def _listed(fields: list[str]) -> str:
    rest = len(fields) - 2 * MOST_SHOWN
    return ", ".join(fields[: 2 * MOST_SHOWN]) + (f" and {rest:,} more" if rest > 0 else "")
