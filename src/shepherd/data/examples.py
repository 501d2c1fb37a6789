"""Rows to examples: Alpaca, Dolly and chats, each fault named by file, line and field."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from shepherd.core import seed_for
from shepherd.data import files
from shepherd.data.columns import listed
from shepherd.data.folding import shows_nothing
from shepherd.data.form import Form
from shepherd.data.in_memory import memory_parts
from shepherd.data.split import Split
from shepherd.errors import BadRow, DataError
from shepherd.settings import DataTable

Role = Literal["system", "user", "assistant"]

ROLES: Mapping[str, Role] = {
    "system": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
}
"""Role names of OpenAI's and ShareGPT's chats, and ours."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """One turn of a chat. `context` belongs to a user turn alone (Dolly's context, Alpaca's input)."""

    role: Role
    text: str
    context: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """One instruction with its response, or a chat: [system,] user, assistant, user, assistant, ...

    `label` is the value of `split.field` where a split goes by it; `where` is the file and line;
    `check` says how an answer is judged (the embedded world has it).
    """

    turns: tuple[Turn, ...]
    category: str = ""
    client: str = ""
    label: str = ""
    where: str = ""
    check: Mapping[str, Any] | None = None

    @property
    def instruction(self) -> str:
        """The first user turn's text."""
        return next(turn.text for turn in self.turns if turn.role == "user")

    @property
    def context(self) -> str:
        """The first user turn's context."""
        return next(turn.context for turn in self.turns if turn.role == "user")

    @property
    def response(self) -> str:
        """The last assistant turn's text."""
        return next(turn.text for turn in reversed(self.turns) if turn.role == "assistant")


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Reading:
    """What was read. `skipped` has one sentence a bad row, where bad rows are skipped."""

    examples: tuple[Example, ...]
    skipped: tuple[str, ...] = ()

    def __repr__(self) -> str:
        """Counts, and no text of any example."""
        return f"<Reading: {len(self.examples):,} examples, {len(self.skipped):,} bad rows skipped>"


def read(table: DataTable, split: Split, seed: int, rows: Any = None) -> Reading:
    """Read `table.source`: a file, a folder with one file a client, a saved data set, or a hub id.

    In a folder each file is a client (its stem) where the split is by file. What is for testing by its name
    is left out, and files of the system; see `files.left_out`.
    `table.limit` keeps at most so many examples of each category, drawn with the seed, in their order.

    Args:
        rows: what to read in the place of the source, where it is in memory; see `in_memory`.

    Raises:
        BadRow: a row cannot be read and `on_bad_row` is "error"; names file, line, field and the fix.
        DataError: a file is missing, empty or unreadable, or no row of a source or of a client is left.
    """
    form = Form.of(table)
    if rows is None:
        parts = files.parts(table.source, table.config, table.part, folder_only=split.by_file, form=form)
    else:
        parts = memory_parts(rows, form, by_client=split.by_file)
    readings = {
        part.client: _gather(part.rows, table, split, part.client if split.by_file else "") for part in parts
    }
    examples = tuple(example for reading in readings.values() for example in reading.examples)
    skipped = tuple(sentence for reading in readings.values() for sentence in reading.skipped)
    if not examples:
        raise DataError(f"{table.source} gives no usable row: {_why_none(skipped)}")
    for client, reading in readings.items():
        if split.by_file and not reading.examples:
            raise DataError(f"client {client} has no usable row: {_why_none(reading.skipped)}")
    return Reading(examples=_limited(examples, table.limit, seed), skipped=skipped)


def _why_none(skipped: Sequence[str]) -> str:
    return f"all {len(skipped)} were skipped, the first because {skipped[0]}" if skipped else "it is empty"


def from_rows(
    rows: Iterable[Mapping[str, Any]], table: DataTable, split: Split, where: str, client: str = ""
) -> Reading:
    """Examples from rows that are already in memory; records count from 1 in messages.

    Raises:
        BadRow: a row cannot be read and `on_bad_row` is "error".
    """
    placed = ((f"{where}, record {number}", row) for number, row in enumerate(rows, 1))
    return _gather(placed, table, split, client)


def _gather(rows: Iterable[files.Placed], table: DataTable, split: Split, client: str) -> Reading:
    examples, skipped = [], []
    for where, row in rows:
        try:
            if isinstance(row, BadRow):
                raise row
            examples.append(_example(row, table, split, where, client))
        except BadRow as error:
            if table.on_bad_row == "error":
                raise
            skipped.append(str(error))
    return Reading(examples=tuple(examples), skipped=tuple(skipped))


def _example(row: Any, table: DataTable, split: Split, where: str, client: str) -> Example:
    if not isinstance(row, Mapping):
        raise BadRow(f"{where} is {_kind(row)}, expected an object with named fields; fix that row")
    check = row.get("check")
    return Example(
        turns=_turns(row, table, where),
        category=_category(row, table, where),
        client=_full(row, split.client_field, where, "split.field") if split.client_field else client,
        label=_full(row, split.label_field, where, "split.field") if split.label_field else "",
        where=where,
        check=check if isinstance(check, Mapping) else None,
    )


def _turns(row: Mapping[str, Any], table: DataTable, where: str) -> tuple[Turn, ...]:
    names = table.fields
    if found := _chat_field(row, table):
        return _chat(row[found], where, found)
    if names.messages not in ("", "auto"):
        raise _missing(row, names.messages, where, "data.fields.messages")
    asked = _user_turn(row, table, where)
    response = _full(row, _pick(row, names.response, ("response", "output")), where, "data.fields.response")
    return (asked, Turn(role="assistant", text=response))


def question(row: Any, table: DataTable, where: str) -> tuple[Turn, ...]:
    """The turns that a row asks to be answered: its instruction with its context, or a chat.

    A chat's last answer is left out, and a response is not read.

    Raises:
        BadRow: a field is missing or is no text, or a chat has no user turn to answer.
    """
    if not isinstance(row, Mapping):
        raise BadRow(f"{where} is {_kind(row)}, expected an object with named fields; rewrite that row")
    if found := _chat_field(row, table):
        turns = _chat(row[found], where, found, answered=False)
        return turns[:-1] if turns[-1].role == "assistant" else turns
    return (_user_turn(row, table, where, asked=True),)


def _chat_field(row: Mapping[str, Any], table: DataTable) -> str:
    """The field with a chat, or "" where the row has none."""
    names = table.fields
    chats = ("messages", "conversations") if names.messages == "auto" else (names.messages,)
    return next((name for name in chats if name and row.get(name) is not None), "")


def _user_turn(row: Mapping[str, Any], table: DataTable, where: str, *, asked: bool = False) -> Turn:
    """The turn of a row; one that is `asked` needs no context, and no key of the run file helps it."""
    names = table.fields
    key = "" if asked else "data.fields.instruction"
    instruction = _full(row, _pick(row, names.instruction, ()), where, key)
    context_field = _pick(row, names.context, ("context", "input"), optional=True)
    if asked and context_field not in row:
        context_field = ""
    context = _text(row, context_field, where, "data.fields.context")
    return Turn(role="user", text=instruction, context="" if shows_nothing(context) else context)


def _pick(row: Mapping[str, Any], name: str, known: tuple[str, ...], *, optional: bool = False) -> str:
    """The field to read: the named one, or the first known one that the row has."""
    if name != "auto":
        return name
    return next((field for field in known if field in row), "" if optional else known[0])


def _full(row: Mapping[str, Any], name: str, where: str, key: str) -> str:
    if name not in row:
        raise _missing(row, name, where, key)
    text = _text(row, name, where, key)
    if shows_nothing(text):
        skip = ', or set data.on_bad_row = "skip"' if key else ""
        raise BadRow(f"{where}: field {name} is empty; fill it in{skip}")
    return text


def _text(row: Mapping[str, Any], name: str, where: str, key: str = "") -> str:
    if not name:
        return ""
    if name not in row:
        raise _missing(row, name, where, key)
    value = row[name]
    if value is None or (isinstance(value, float) and np.isnan(value)):  # a null, as pandas writes it
        return ""
    if isinstance(value, int) and not isinstance(value, bool):  # loses nothing
        return str(value)
    if not isinstance(value, str):
        raise BadRow(f"{where}: field {name} is {_kind(value)}, expected text; write it as text")
    if any("\ud800" <= letter <= "\udfff" for letter in set(value)):  # JSON allows it, UTF-8 does not
        raise BadRow(f"{where}: field {name} holds half of a surrogate pair; write the whole character")
    return value


def _missing(row: Mapping[str, Any], name: str, where: str, key: str) -> BadRow:
    fix = f"add it, or map it with {key}" if key else "add it"
    return BadRow(f"{where}: field {name or 'without a name'} is missing ({listed(row)}); {fix}")


def _category(row: Mapping[str, Any], table: DataTable, where: str) -> str:
    default = DataTable.model_fields["category"].default
    if not table.category or (table.category == default and default not in row):
        return ""
    return _text(row, table.category, where, "data.category")


def _chat(value: Any, where: str, field: str, *, answered: bool = True) -> tuple[Turn, ...]:
    if isinstance(value, str):  # a CSV cell
        try:
            value = json.loads(value)
        except ValueError as error:
            raise BadRow(f"{where}: field {field} is not a list of turns ({error}); fix it") from error
    if not isinstance(value, list) or not value:
        raise BadRow(f"{where}: field {field} is {_kind(value)}, expected a list of turns; fix it")
    turns = tuple(_turn(item, f"{where}: field {field}, turn {n}") for n, item in enumerate(value, 1))
    spoken = turns[1:] if turns[0].role == "system" else turns
    for number, turn in enumerate(spoken, 1 + len(turns) - len(spoken)):
        wanted = "assistant" if (number - 1 - len(turns) + len(spoken)) % 2 else "user"
        if turn.role != wanted:
            raise BadRow(
                f"{where}: field {field}, turn {number} is {turn.role}'s, expected {wanted}'s; "
                "a chat alternates, user first, after at most one system turn"
            )
    if not (answered or spoken):
        raise BadRow(f"{where}: field {field} holds no user turn; add it or remove the row")
    if answered and (not spoken or spoken[-1].role != "assistant"):
        raise BadRow(f"{where}: field {field} ends without an assistant turn; add it or remove the row")
    return spoken if shows_nothing(turns[0].text) else turns


def _turn(item: Any, where: str) -> Turn:
    if not isinstance(item, Mapping):
        raise BadRow(f"{where} is {_kind(item)}, expected role and content; fix it")
    role_key, text_key = ("from", "value") if "from" in item else ("role", "content")
    role = ROLES.get(str(_text(item, role_key, where)).strip().lower())
    if role is None:
        raise BadRow(f"{where} has the role {item[role_key]!r}; known roles are {', '.join(ROLES)}")
    text = _text(item, text_key, where)
    if shows_nothing(text) and role != "system":
        raise BadRow(f"{where} ({role}) is empty; fill it in or remove the row")
    return Turn(role=role, text=text)


def _kind(value: Any) -> str:
    match value:
        case None:
            return "null"
        case bool():
            return f"{value}".lower()
        case int() | float():
            return f"the number {value}"
        case str():
            return "text"
        case list() | tuple():
            return "a list" if value else "an empty list"
        case Mapping():
            return "an object"
        case _:
            return f"a {type(value).__name__}"


def _limited(examples: tuple[Example, ...], limit: int | None, seed: int) -> tuple[Example, ...]:
    if limit is None:
        return examples
    groups: Mapping[str, list[int]] = by_category(examples)
    kept = (_drawn(groups[name], limit, seed_for(seed, "limit", name)) for name in groups)
    limited = tuple(examples[index] for index in sorted(i for part in kept for i in part))
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
