"""Read rows as examples: Alpaca, Dolly and chats. Errors name file, line and field."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from shepherd.core import seed_for
from shepherd.data import files
from shepherd.data.chats import ROLES, Role, Turn
from shepherd.data.example import Example
from shepherd.data.fields import alike, from_cell, is_filled, kind, name_of, part_keys, sort
from shepherd.data.form import Form
from shepherd.data.in_memory import memory_parts
from shepherd.data.keep import keep
from shepherd.data.layouts import missing, question, require_full
from shepherd.data.noted import Notes, Tally
from shepherd.data.pairs import turns_of
from shepherd.data.split import Split
from shepherd.errors import BadRow, DataError
from shepherd.settings import ROW_NUMBER, DataTable

__all__ = ["ROLES", "Example", "Reading", "Role", "Turn", "by_category", "from_rows", "question", "read"]

WORDS = (
    "<noinput>", "noinput", "<no input>", "no input", "<nooutput>", "nooutput", "<na>", "#n/a", "n/a", "n.a.",
    "na", "nan", "none", "<none>", "null", "<null>", "nil", "undefined", "empty", "<empty>", "-", "--", "[]",
    "none.", "n/a.", "no input.", "not applicable", "(none)", "(null)", "(empty)", "[null]", "[none]", "\\n",
    "{}", '""', "''", "#div/0!", "#value!", "#ref!", "#name?", "#num!", "#null!",
)  # fmt: skip
"""Words that programs and people write for an empty field."""
RETURNS = "a text holds carriage returns (\\r), which are trained as they are"


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Reading:
    """Examples of a source; `skipped` has one sentence for each bad row that was skipped.

    Where the examples are many they are on disk, and made anew each time that one is asked for; see `keep`.
    """

    examples: Sequence[Example]
    skipped: tuple[str, ...] = ()
    notes: Notes = field(default_factory=Notes)
    """Counts of what of the rows is not read, refused or changed."""
    skipped_by_client: Mapping[str, int] = field(default_factory=dict)
    """How many rows were skipped of each client, as far as the rows or their file say whose they are."""

    def __repr__(self) -> str:
        """Counts, and no text of any example."""
        return f"<Reading: {len(self.examples):,} examples, {len(self.skipped):,} bad rows skipped>"


def read(table: DataTable, split: Split, seed: int, rows: Any = None) -> Reading:
    """Read `table.source`: a file, a folder with one file a client, a saved data set, or a hub id.

    Where the split is by file, each file of a folder is a client, named by its stem. Files for testing (by
    their names) and files of the system are left out; see `files.left_out`. `table.limit` is the most
    examples of each category that are kept, drawn with the seed, in their order.

    Args:
        rows: rows in memory to read instead of the source; see `in_memory`.

    Raises:
        BadRow: a row cannot be read and `on_bad_row` is "error"; names file, line, field and the fix.
        DataError: a file is missing, empty or unreadable, or no row of the source or of a client can be used.
    """
    form = Form.of(table)
    if rows is None:
        parts = files.parts(table.source, table.config, table.part, folder_only=split.by_file, form=form)
    else:
        parts = memory_parts(rows, form, by_client=split.by_file)
    counted = {part.client: _Noted() for part in parts}
    examples = keep(
        example
        for part in parts
        for example in _taken(
            part.rows, table, split, part.client if split.by_file else "", counted[part.client]
        )
    )
    skipped = tuple(sentence for each in counted.values() for sentence in each.skipped)
    if not examples:
        raise DataError(f"{table.source} has no usable row: {_why_none(skipped)}")
    for client, each in counted.items():
        if split.by_file and not each.taken:
            raise DataError(f"client {client} has no usable row: {_why_none(each.skipped)}")
    return Reading(
        examples=_limited(examples, table.limit, seed),
        skipped=skipped,
        notes=Notes.together(each.notes() for each in counted.values()),
        skipped_by_client=sum((each.whose for each in counted.values()), Counter()),
    )


def _why_none(skipped: Sequence[str]) -> str:
    return f"all {len(skipped)} were skipped, the first because {skipped[0]}" if skipped else "it is empty"


def from_rows(
    rows: Iterable[Mapping[str, Any]], table: DataTable, split: Split, where: str, client: str = ""
) -> Reading:
    """Read rows in memory as examples; messages count records from 1.

    Raises:
        BadRow: a row cannot be read and `on_bad_row` is "error".
    """
    placed = ((f"{where}, record {number}", row) for number, row in enumerate(rows, 1))
    noted = _Noted()
    examples = keep(_taken(placed, table, split, client, noted))
    return Reading(
        examples=examples, skipped=tuple(noted.skipped), notes=noted.notes(), skipped_by_client=noted.whose
    )


def _taken(
    rows: Iterable[files.Placed], table: DataTable, split: Split, client: str, noted: _Noted
) -> Iterator[Example]:
    """The rows that can be read, one after another, each counted in `noted` as it passes."""
    for where, row in rows:
        noted.rows += 1
        try:
            if isinstance(row, BadRow):
                raise row
            found = _found(row, table, split, where, noted.rows)
        except BadRow as error:
            if table.on_bad_row == "error":
                raise
            noted.skip(str(error), client or _client(row, split))
            noted.count("refused", [_reason(error, where)], where)
            continue
        for name in ("unread", "changed", "seen"):
            noted.count(name, getattr(found, name), where)
        noted.count("empty", map(noted.spelled, found.empty), where)
        noted.taken += 1
        yield found.example if split.client_field else replace(found.example, client=client)


class _Noted:
    """Running counts over the rows of a source."""

    def __init__(self) -> None:
        self.rows = self.taken = 0
        self.skipped: list[str] = []
        self.whose = Counter[str]()
        """How many rows were skipped of each client that is known."""
        self._found: dict[str, dict[str, tuple[int, str]]] = defaultdict(dict)
        self._spellings: dict[str, str] = {}

    def skip(self, sentence: str, client: str) -> None:
        self.skipped.append(sentence)
        if client:
            self.whose[client] += 1

    def count(self, kind: str, whats: Iterable[str], where: str) -> None:
        found = self._found[kind]
        for what in whats:
            rows, first = found.get(what, (0, where))
            found[what] = rows + 1, first

    def spelled(self, what: str) -> str:
        """The first spelling of what is counted, so that N/A and n/a are one."""
        return self._spellings.setdefault(what.casefold(), what)

    def notes(self) -> Notes:
        tallies = {
            kind: {what: Tally(*tally) for what, tally in found.items()}
            for kind, found in self._found.items()
        }
        return Notes(rows=self.rows, **tallies)


def _client(row: Any, split: Split) -> str:
    """The client that a row names; "" if it names none."""
    with suppress(BadRow):
        if isinstance(row, Mapping) and (field := _own_name(row, split.client_field)) in row:
            return name_of(row[field], "", "")
    return ""


def _reason(error: BadRow, where: str) -> str:
    """The reason that a row is refused, without its place."""
    if error.reason:
        return error.reason
    said = str(error).removeprefix(where).removeprefix(":").strip()
    reason = re.split(r" \(|; ", said, maxsplit=1)[0]
    return f"the row {reason}" if reason.startswith(("is ", "has ")) else reason


@dataclass(frozen=True, slots=True, kw_only=True)
class _Found:
    """An example, and what of its row is to be counted, as in `Notes`."""

    example: Example
    unread: Sequence[str]
    changed: Sequence[str]
    seen: Sequence[str]
    empty: Sequence[str]


def _found(row: Any, table: DataTable, split: Split, where: str, number: int) -> _Found:
    """Read a row, the `number`th of its file."""
    if not isinstance(row, Mapping):
        fault = f"is {kind(row)}, expected an object with named fields"
        raise BadRow(
            f"{where} {fault}; fix that row", f"the row is {sort(row)} and no object with named fields"
        )
    read = turns_of(row, table, where)
    category, client, label = (
        _category_field(row, table),
        _own_name(row, split.client_field),
        _own_name(row, split.label_field),
    )
    group = _own_name(row, table.group)
    check = row.get("check")
    example = Example(
        turns=read.turns,
        rejected=read.rejected,
        category=_name(row, category, where, "data.category") if category else "",
        client=_full_name(row, client, where) if client else "",
        label=_full_name(row, label, where) if label else "",
        group=str(number) if table.group == ROW_NUMBER else _group(row, group, where),
        where=where,
        check=check if isinstance(check, Mapping) else None,
    )
    used = {*read.used, category, client, label, group, *(["check"] if example.check is not None else [])}
    unread = [str(name) for name, value in row.items() if name not in used and is_filled(from_cell(value))]
    unread += [f"{name}[].{key}" for name in row if name in used for key in part_keys(row[name])]
    texts = [(name, text) for turn in (*read.turns, *read.rejected) for name, text in _said(turn)]
    names = [("category", example.category), ("client", example.client), (f"field {label}", example.label)]
    return _Found(
        example=example,
        unread=[*unread, *read.unread],
        changed=read.changed,
        seen=[RETURNS] if any("\r" in text for _, text in texts) else [],
        empty=list(
            dict.fromkeys(
                f"the {name} is {text.strip()!r}"
                for name, text in (*texts, *names)
                if text.strip().casefold() in WORDS
            )
        ),
    )


def _said(turn: Turn) -> Iterator[tuple[str, str]]:
    """Name and text of each text of a turn."""
    called = {"user": "instruction", "assistant": "response", "system": "system text"}
    yield called[turn.role], turn.text
    if turn.context:
        yield "context", turn.context


def _own_name(row: Mapping[str, Any], name: str) -> str:
    """The row's spelling of the field `name`; `name` itself where the row has no such field."""
    return next(iter(alike(row, (name,))), name) if name else ""


def _category_field(row: Mapping[str, Any], table: DataTable) -> str:
    """The field of the category; "" where the row has none and the run file names none."""
    field = _own_name(row, table.category)
    return "" if field not in row and table.category == DEFAULT_CATEGORY else field


DEFAULT_CATEGORY = DataTable.model_fields["category"].default


def _name(row: Mapping[str, Any], name: str, where: str, key: str) -> str:
    if name not in row:
        raise missing(row, name, where, key)
    return name_of(row[name], where, f"field {name}")


def _group(row: Mapping[str, Any], field: str, where: str) -> str:
    """The group of a row; "" where it names none, which is a group of its own."""
    value = row.get(field)
    return name_of(value, where, f"field {field}").strip() if is_filled(value) else ""


def _full_name(row: Mapping[str, Any], name: str, where: str) -> str:
    text = _name(row, name, where, "split.field")
    require_full(text, name, where, "split.field")
    return text


def _limited(examples: Sequence[Example], limit: int | None, seed: int) -> Sequence[Example]:
    if limit is None:
        return examples
    groups: Mapping[str, list[int]] = by_category(examples)
    kept = (_drawn(groups[name], limit, seed_for(seed, "limit", name)) for name in groups)
    limited = keep(examples[index] for index in sorted(i for part in kept for i in part))
    for client in sorted({e.client for e in examples} - {e.client for e in limited}):
        raise DataError(f"data.limit = {limit} leaves client {client} without an example; raise it")
    return limited


def _drawn(indices: list[int], count: int, seed: int) -> Iterator[int]:
    return (int(i) for i in np.random.default_rng(seed).permutation(indices)[:count])


def by_category(examples: Iterable[Example]) -> dict[str, list[int]]:
    """Indices of the examples of each category, categories in alphabetical order."""
    groups: dict[str, list[int]] = defaultdict(list)
    for index, example in enumerate(examples):
        groups[example.category].append(index)
    return {name: groups[name] for name in sorted(groups)}
