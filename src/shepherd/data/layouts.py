"""Read a row as turns: an instruction with its response, or a chat.

Of several fields that fit one part, the first that is filled is read. Reporting the fields that are filled
and not read is left to the caller.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from shepherd.data.chats import ROLE_KEYS, TEXT_KEYS, Chat, Turn, chat
from shepherd.data.columns import listed
from shepherd.data.fields import (
    CHATS,
    CONTEXTS,
    HISTORIES,
    RESPONSES,
    SYSTEMS,
    alike,
    bad,
    filled,
    from_cell,
    is_filled,
    is_parts,
    kind,
    pick,
    text_of,
)
from shepherd.data.folding import shows_nothing
from shepherd.errors import BadRow
from shepherd.settings import DataTable


@dataclass(frozen=True, slots=True, kw_only=True)
class RowTurns:
    """Turns of a row; the fields that they come from; and what of these is not read or was changed.

    `rejected` are the turns that end with the worse one of a pair of answers, if the row holds one.
    """

    turns: tuple[Turn, ...]
    used: frozenset[str]
    unread: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()
    rejected: tuple[Turn, ...] = ()


def turns_of(row: Mapping[str, Any], table: DataTable, where: str) -> RowTurns:
    """Read a row as turns that end with an assistant's.

    Raises:
        BadRow: a field is missing, empty or no text, or a chat's turns are not in order.
    """
    if found := _chat_field(row, table):
        _require(row, table, ("system",), where)
        return _chat(row, found, table, where)
    _require(row, table, ("messages",), where)
    asked = user_turn(row, table, where)
    names = known_names(table.fields.response, RESPONSES)
    response = _full(row, pick(row, names), where, "data.fields.response")
    return replace(
        asked,
        turns=(*asked.turns, Turn(role="assistant", text=response)),
        used=asked.used | _same(row, names),
        changed=(*asked.changed, *_differ(row, names)),
    )


def question(row: Any, table: DataTable, where: str) -> tuple[Turn, ...]:
    """Read a row as turns to be answered: its instruction with its context, or a chat.

    A chat's last answer is left out, and a response is not read.

    Raises:
        BadRow: a field is missing or is no text, or a chat has no user turn to answer.
    """
    return asked_of(row, table, where).turns


def asked_of(row: Any, table: DataTable, where: str) -> RowTurns:
    """As `question`, with the fields that are read; a response counts as read, since it is left out."""
    if not isinstance(row, Mapping):
        raise BadRow(f"{where} is {kind(row)}, expected an object with named fields; rewrite that row")
    if found := _chat_field(row, table):
        read = _chat(row, found, table, where, answered=False)
        return replace(read, turns=read.turns[:-1]) if read.turns[-1].role == "assistant" else read
    read = user_turn(row, table, where, asked=True)
    return replace(read, used=read.used | set(alike(row, known_names(table.fields.response, RESPONSES))))


def _require(row: Mapping[str, Any], table: DataTable, parts: Sequence[str], where: str) -> None:
    """Raise BadRow where the run file names a field for one of these parts and the row lacks it."""
    for part in parts:
        name = getattr(table.fields, part)
        if name not in ("", "auto") and not alike(row, (name,)):
            raise missing(row, name, where, f"data.fields.{part}")


def known_names(name: str, known: tuple[str, ...]) -> tuple[str, ...]:
    """The names that a field may have: the one that the run file gives, or those known."""
    return known if name == "auto" else (name,) if name else ()


def _chat_field(row: Mapping[str, Any], table: DataTable) -> str:
    """The field with a chat, or "" where the row has none."""
    names = known_names(table.fields.messages, CHATS)
    there = alike(row, names)
    held = {name: value for name in filled(row, names) if is_filled(value := from_cell(row[name]))}
    instruction = known_names(table.fields.instruction, ())
    for name, value in held.items():
        # a named field that holds no list is an error later; under "auto" it is not a chat
        if isinstance(value, list | tuple | Mapping) or table.fields.messages != "auto":
            return name
    if held and not filled(row, instruction):
        return next(iter(held))
    return there[0] if there and not alike(row, instruction) else ""


def _chat(
    row: Mapping[str, Any], found: str, table: DataTable, where: str, *, answered: bool = True
) -> RowTurns:
    read = chat(row[found], where, found, answered=answered)
    if answered and not any(turn.trained for turn in read.turns if turn.role == "assistant"):
        fault = f"field {found} has no assistant turn that is to be trained"
        raise bad(where, f"{fault}, by the marks of its turns; remove the row", fault)
    names = known_names(table.fields.messages, CHATS)
    same = _same_chats(row, found, filled(row, names), where, answered)
    used, turns = same, read.turns
    others = [name for name in filled(row, names) if name not in same]
    changed = (*read.changed, *(both_filled(found, name) for name in others))
    system, field = system_of(row, table, where)
    if system and turns[0].role != "system":
        turns, used = (Turn(role="system", text=system), *turns), used | {field}
    elif system and turns[0].text == system:
        used |= {field}
    elif system:
        changed += (f"field {field} and the chat's system turn are filled and differ; the turn is read",)
    return RowTurns(turns=turns, used=used, unread=read.unread, changed=changed)


def _same_chats(
    row: Mapping[str, Any], found: str, others: Sequence[str], where: str, answered: bool
) -> frozenset[str]:
    """Fields that hold the chat of the field `found`, in whatever layout."""
    turns, same = chat(row[found], where, found, answered=answered).turns, {found}
    for name in others:
        with suppress(BadRow):
            if name != found and chat(row[name], where, name, answered=answered).turns == turns:
                same.add(name)
    return frozenset(same)


def system_of(row: Mapping[str, Any], table: DataTable, where: str) -> tuple[str, str]:
    """Text and field of the row's system prompt; two empty strings for none.

    A field that is not text counts only where the run file names it.
    """
    name = table.fields.system
    for field in filled(row, known_names(name, SYSTEMS)):
        if name != "auto" or isinstance(row[field], str) or is_parts(row[field]):
            return _text(row, field, where), field
    return "", ""


def _history(row: Mapping[str, Any], table: DataTable, where: str) -> tuple[Chat, str]:
    """Exchanges before the row's own, and their field: pairs of a question and its answer, or turns.

    A text or a list of anything else counts only where the run file names its field.
    """
    name = table.fields.history
    for field in filled(row, known_names(name, HISTORIES)):
        value = from_cell(row[field])
        if isinstance(value, list) and all(_is_pair(each) for each in value if is_filled(each)):
            return Chat(turns=tuple(_exchanges(value, where, field))), field
        if isinstance(value, list) and all(
            isinstance(each, Mapping) and alike(each, ROLE_KEYS) for each in value
        ):
            return chat(value, where, field), field
        if name != "auto":
            fault = f"field {field} is {kind(value)}"
            raise bad(where, f"{fault}, expected pairs of a question and its answer; fix it", fault)
    return Chat(turns=()), ""


def _is_pair(value: Any) -> bool:
    return isinstance(value, list | tuple) and len(value) == 2 and not any(isinstance(x, list) for x in value)


def _exchanges(pairs: Sequence[Any], where: str, field: str) -> Iterator[Turn]:
    for number, pair in enumerate(pairs, 1):
        if not is_filled(pair):
            continue
        place = f"{where}: field {field}, exchange {number}"
        for role, text in zip(("user", "assistant"), pair, strict=True):
            said = text_of(text, place, f"the {role}'s text")
            if shows_nothing(said):
                raise bad(
                    place, f"the {role}'s text is empty; fill it in", f"field {field} has an empty text"
                )
            yield Turn(role="user" if role == "user" else "assistant", text=said)


def user_turn(row: Mapping[str, Any], table: DataTable, where: str, *, asked: bool = False) -> RowTurns:
    """Turns up to the row's question; if `asked`, fields that the run file names may be missing."""
    names = table.fields
    key = "" if asked else "data.fields.instruction"
    field = pick(row, (names.instruction,))
    if field not in row and filled(row, ROLE_KEYS) and filled(row, TEXT_KEYS):
        fault = "the row is one turn of a chat"
        raise bad(
            where, f"{fault}; write a row for each chat, with its turns in a list under messages", fault
        )
    instruction = _full(row, field, where, key)
    contexts = known_names(names.context, CONTEXTS)
    context = ""
    if not asked:
        _require(row, table, ("context", "system", "history"), where)
    if alike(row, contexts):
        context = _text(row, pick(row, contexts), where)
    system, system_field = system_of(row, table, where)
    earlier, history_field = _history(row, table, where)
    first = next(iter(earlier.turns), None)
    if first is not None and first.role == "system":
        if system and system != first.text:
            fault = f"field {system_field} and the system turn of field {history_field} differ"
            raise bad(where, f"{fault}; keep one of them", fault)
        system, earlier = first.text, replace(earlier, turns=earlier.turns[1:])
    turn = Turn(role="user", text=instruction, context="" if shows_nothing(context) else context)
    return RowTurns(
        turns=(*([Turn(role="system", text=system)] if system else []), *earlier.turns, turn),
        used=frozenset({field, system_field, history_field}) | _same(row, contexts),
        unread=earlier.unread,
        changed=(*_differ(row, contexts), *earlier.changed),
    )


def _same(row: Mapping[str, Any], names: tuple[str, ...]) -> frozenset[str]:
    """Fields of one part that count as read: the first that is filled, and those with the same value."""
    held = filled(row, names)
    return frozenset(name for name in held if row[name] == row[held[0]])


def _differ(row: Mapping[str, Any], names: tuple[str, ...]) -> Iterator[str]:
    first, *others = filled(row, names) or [""]
    for name in others:
        if row[name] != row[first]:
            yield both_filled(first, name)


def both_filled(read: str, other: str) -> str:
    return f"fields {read} and {other} are both filled and differ; {read} is read"


def _full(row: Mapping[str, Any], name: str, where: str, key: str) -> str:
    if name not in row:
        raise missing(row, name, where, key)
    text = _text(row, name, where)
    require_full(text, name, where, key)
    return text


def require_full(text: str, name: str, where: str, key: str) -> None:
    """Raise BadRow where a text is empty."""
    if shows_nothing(text):
        skip = ', or set data.on_bad_row = "skip"' if key else ""
        raise bad(where, f"field {name} is empty; fill it in{skip}", f"field {name} is empty")


def _text(row: Mapping[str, Any], name: str, where: str) -> str:
    return text_of(row[name], where, f"field {name}")


def missing(row: Mapping[str, Any], name: str, where: str, key: str) -> BadRow:
    """The error for a row that lacks the field `name`; `key` is the key of the run file that maps it."""
    fix = f"add it, or map it with {key}" if key else "add it"
    fault = f"field {name or 'without a name'} is missing"
    return bad(where, f"{fault} ({listed(row)}); {fix}", fault)
