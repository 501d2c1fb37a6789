"""Counts from reading rows: what is not read, what is refused, and what is changed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Self

from shepherd.io.progress import many
from shepherd.visible import shown_line

MAX_SHOWN = 12
"""Most reasons that are shown, the commonest; the rest is counted."""
MAX_NAME_CHARS = 60
"""Characters of a field's name that are shown; a longer one may be a cell of a file without a header."""
MIN_EMPTY_ROWS, MIN_EMPTY_SHARE = 2, 0.01
"""A word for an empty field is reported from this many rows, and this share of the rows, on."""


@dataclass(frozen=True, slots=True)
class Tally:
    """A number of rows, and the place of the first of them."""

    rows: int
    first: str


Tallies = Mapping[str, Tally]


@dataclass(frozen=True, slots=True, kw_only=True)
class Notes:
    """Counts over rows: `unread` by field, `refused` by reason, `changed`, `seen` and `empty` by remark.

    `rows` is how many rows were read. `refused` counts rows that were skipped; `changed`, parts of rows that
    were left out, masked or chosen; `seen`, texts that are trained as they are and may be a mistake; `empty`,
    words that may mean an empty field.
    """

    rows: int = 0
    unread: Tallies = field(default_factory=dict)
    refused: Tallies = field(default_factory=dict)
    changed: Tallies = field(default_factory=dict)
    seen: Tallies = field(default_factory=dict)
    empty: Tallies = field(default_factory=dict)

    @classmethod
    def together(cls, parts: Iterable[Notes]) -> Self:
        """The sum of several files' notes; first places are those of the first file that has one."""
        parts = list(parts)
        tallies = {
            name: added(getattr(part, name) for part in parts)
            for name in ("unread", "refused", "changed", "seen", "empty")
        }
        return cls(rows=sum(part.rows for part in parts), **tallies)

    def plain(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)

    @classmethod
    def of(cls, plain: Mapping[str, Any]) -> Self:
        """Notes from the values of `plain`; older run folders have none."""
        tallies = {
            name: {what: Tally(**tally) for what, tally in found.items()}
            for name, found in plain.items()
            if name != "rows"
        }
        return cls(rows=plain.get("rows", 0), **tallies)

    def sentences(self) -> list[str]:
        """Sentences for the user, one for each remark."""
        said = []
        if self.unread:
            fields = [f"{_name(name)} (in {many(tally.rows, 'row')})" for name, tally in self.unread.items()]
            said.append(f"filled and not read: {_listed(fields)}; to read a field, name it in data.fields")
        said += [
            f"{many(tally.rows, 'row')} skipped: {shown_line(reason)} (the first: {shown_line(tally.first)})"
            for reason, tally in _commonest(self.refused)
        ]
        rest = len(self.refused) - MAX_SHOWN
        if rest > 0:
            said.append(f"rows are skipped for {many(rest, 'other reason')}, which the run folder lists")
        said += [
            f"in {many(tally.rows, 'row')} {shown_line(what)} (the first: {shown_line(tally.first)})"
            for what, tally in (*_commonest(self.changed), *_commonest(self.seen))
        ]
        said += [
            f"in {tally.rows:,} of {many(self.rows, 'row')} {shown_line(what)}, which is read as text (the"
            f" first: {shown_line(tally.first)}); empty these fields if the word means that there is nothing"
            for what, tally in _commonest(self.empty)
            if tally.rows >= max(MIN_EMPTY_ROWS, MIN_EMPTY_SHARE * self.rows)
        ]
        return said


def added(parts: Iterable[Tallies]) -> Tallies:
    """The sum of several tallies; each keeps its earliest first place.

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
    return sorted(tallies.items(), key=lambda item: -item[1].rows)[:MAX_SHOWN]


def _name(name: str) -> str:
    return shown_line(name if len(name) <= MAX_NAME_CHARS else name[:MAX_NAME_CHARS] + "...")


def _listed(fields: list[str]) -> str:
    rest = len(fields) - 2 * MAX_SHOWN
    return ", ".join(fields[: 2 * MAX_SHOWN]) + (f" and {rest:,} more" if rest > 0 else "")
