"""Read a row's chat as turns: their roles, their texts, and which of them are to be trained."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from shepherd.data.fields import (
    alike,
    bad,
    filled,
    from_cell,
    is_filled,
    is_texts,
    kind,
    name_of,
    part_keys,
    pick,
    plain_name,
    text_of,
)
from shepherd.data.folding import shows_nothing
from shepherd.errors import BadRow

Role = Literal["system", "user", "assistant"]

ROLES: Mapping[str, Role] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
}
"""Role names of OpenAI's and ShareGPT's chats, and the role that each means."""

ROLE_KEYS, TEXT_KEYS = ("role", "from"), ("content", "value")
MARKS = ("weight", "train", "training", "trainable", "loss")
"""Keys that say whether a turn is trained: OpenAI's and those of other trainers."""

TOOL_ROLES = {
    "tool", "tool_call", "tool_calls", "tool_response", "tool_result", "function", "function_call",
    "function_response", "observation", "ipython", "environment",
}  # fmt: skip
TOOL_PARTS = {"tool_use", "tool_call", "tool_result", "function_call", "function_call_output"}
CALLS = ("tool_calls", "function_call")
"""Keys of tool calls and of their results (decision 31)."""

BEGINS = "the chat begins with the assistant: its turns before the first user turn are left out"
ENDS = "the chat ends with the user: the turn without an answer is left out"
MASKED = "an assistant turn is marked as not to be trained, and is masked"


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Turn:
    """One turn of a chat; only user turns have a `context` (Dolly's context, Alpaca's input).

    `trained` is false where the data mark an assistant turn as not to be trained.
    """

    role: Role
    text: str
    context: str = ""
    trained: bool = True

    def __repr__(self) -> str:
        """The role and how long the text is: the text itself stays out of logs."""
        return f"<Turn: {self.role}, {len(self.text) + len(self.context):,} characters>"


@dataclass(frozen=True, slots=True, kw_only=True)
class Chat:
    """Turns; the keys of turns that are filled and not read; and what was changed, as in `Notes`."""

    turns: tuple[Turn, ...]
    unread: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class _Given:
    """A turn as the data give it, with its number for messages."""

    turn: Turn
    number: int
    unread: tuple[str, ...]
    changed: tuple[str, ...] = ()


def chat(value: Any, where: str, field: str, *, answered: bool = True) -> Chat:
    """Read a chat: [system,] user, assistant, user, assistant, ...

    If `answered`, the assistant's turns before the first user turn and the user's turns after the last answer
    are left out.

    Raises:
        BadRow: `value` is no list of turns, a turn has no text or an unknown role, or turns do not
            alternate.
    """
    given = [_given(item, where, field, number) for number, item in _items(value, where, field)]
    system = given[:1] if given[0].turn.role == "system" else []
    spoken = given[len(system) :]
    first, last = 0, len(spoken)
    while answered and first < last and spoken[first].turn.role == "assistant":
        first += 1
    while answered and last > first and spoken[last - 1].turn.role == "user":
        last -= 1
    kept = spoken[first:last]
    if not kept:
        raise _nothing_left(spoken, where, field, answered)
    _require_order(kept, where, field)
    system = [each for each in system if not shows_nothing(each.turn.text)]
    turns = [each.turn for each in (*system, *kept)]
    marked = any(not turn.trained for turn in turns)
    return Chat(
        turns=tuple(turns),
        unread=tuple(dict.fromkeys(f"{field}[].{key}" for each in given for key in each.unread)),
        changed=(
            *([BEGINS] if _say_something(spoken[:first]) else []),
            *([ENDS] if _say_something(spoken[last:]) else []),
            *([MASKED] if marked and answered else []),
            *dict.fromkeys(what for each in given for what in each.changed),
        ),
    )


def _say_something(given: Sequence[_Given]) -> bool:
    return not all(shows_nothing(each.turn.text) for each in given)


def _nothing_left(spoken: Sequence[_Given], where: str, field: str, answered: bool) -> BadRow:
    if spoken and spoken[0].turn.role == "assistant":
        return _misplaced(spoken[0], "user", where, field)
    if answered and len(spoken) > 1:
        return _misplaced(spoken[1], "assistant", where, field)
    what = "ends without an assistant turn" if answered else "holds no user turn"
    return bad(where, f"field {field} {what}; add it or remove the row", f"field {field} {what}")


def _items(value: Any, where: str, field: str) -> Iterator[tuple[int, Any]]:
    """The turns with their numbers, from 1; nulls are skipped."""
    value = from_cell(value)
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as error:
            fault = f"field {field} is not a list of turns"
            raise bad(where, f"{fault} ({error}); fix it", fault) from error
    if isinstance(value, Mapping):  # columns, as Arrow stores a list of objects for some
        value = _rows(value)
    if not isinstance(value, list | tuple) or not any(map(is_filled, value)):
        fault = f"field {field} is {kind(value)}, expected a list of turns"
        raise bad(where, f"{fault}; fix it", f"field {field} is no list of turns")
    return ((number, item) for number, item in enumerate(value, 1) if is_filled(item))


def _rows(columns: Mapping[str, Any]) -> Any:
    lists = list(columns.values())
    if not lists or not all(isinstance(each, list) and len(each) == len(lists[0]) for each in lists):
        return columns
    return [dict(zip(columns, each, strict=True)) for each in zip(*lists, strict=True)]


def _given(item: Any, where: str, field: str, number: int) -> _Given:
    place = f"{where}: field {field}, turn {number}"
    if not isinstance(item, Mapping):
        fix = "fix it"
        if isinstance(item, str):
            fix = 'write each turn as {"role": "user", "content": "..."}, since a text alone has no role'
        elif isinstance(item, list):
            fix = "it is a list of lists; write a row for each chat, and its turns in one list"
        raise _fault(
            place, f"is {kind(item)}, expected role and content; {fix}", field, "is no role and content"
        )
    role_key, text_key = pick(item, ROLE_KEYS), pick(item, TEXT_KEYS)
    said = text_of(item.get(role_key), place, f"field {role_key}")
    if _calls_tools(item, said, item.get(text_key)):
        fault = f"the chat of field {field} calls tools"
        fix = 'leave such chats out, or set data.on_bad_row = "skip"'
        raise bad(where, f"{fault} (turn {number}), which Shepherd does not train yet; {fix}", fault)
    for key, known in ((role_key, ROLE_KEYS), (text_key, TEXT_KEYS)):
        if key not in item:
            names = " or ".join(known)
            raise _fault(place, f": field {known[0]} is missing; add it", field, f"has no {names}")
    role = ROLES.get(plain_name(said))
    if role is None:
        fault = f"has the role {said!r}"
        raise _fault(place, f"{fault}; known roles are {', '.join(ROLES)}", field, fault)
    value = item[text_key]
    parts = [{"text": text} for text in value] if is_texts(value) and any(map(is_filled, value)) else value
    text = text_of(parts, place, f"field {text_key}")  # texts in a list are parts here, and nothing else
    marks = [key for key in filled(item, MARKS) if _mark(item[key]) is not None]
    trained = all(_mark(item[key]) for key in marks)
    if role != "assistant":  # never trained, whatever its mark says; a mark to train it counts as unread
        marks, trained = [key for key in marks if not _mark(item[key])], True
    same = {key for key in filled(item, ROLE_KEYS) if ROLES.get(plain_name(str(item[key]))) == role}
    same |= {key for key in filled(item, TEXT_KEYS) if item[key] == value}
    used = {role_key, text_key, *marks, *same}
    differ = [key for key in (*filled(item, ROLE_KEYS), *filled(item, TEXT_KEYS)) if key not in used]
    return _Given(
        turn=Turn(role=role, text=text, trained=trained),
        number=number,
        unread=(
            *(str(key) for key, inner in item.items() if key not in used and is_filled(inner)),
            *(f"{text_key}[].{key}" for key in part_keys(value)),
        ),
        changed=tuple(
            f"keys {read} and {key} of a turn of field {field} are both filled and differ; {read} is read"
            for key in differ
            for read in [role_key if key in alike(item, ROLE_KEYS) else text_key]
        ),
    )


def _calls_tools(item: Mapping[str, Any], role: str, value: Any) -> bool:
    """Whether a turn is a call or its result: by its role or type, its keys, or its parts."""
    if role.strip().lower() in TOOL_ROLES or item.get("type") in TOOL_PARTS or filled(item, CALLS):
        return True
    parts = value if isinstance(value, list | tuple) else []
    return any(isinstance(part, Mapping) and part.get("type") in TOOL_PARTS for part in parts)


def _mark(value: Any) -> bool | None:
    """Whether a mark means that its turn is trained; None for an unknown value."""
    try:
        said = name_of(value, "", "").strip().lower()
    except BadRow:  # no mark that is known
        return None
    return {"0": False, "0.0": False, "false": False, "1": True, "1.0": True, "true": True}.get(said)


def _require_order(kept: Sequence[_Given], where: str, field: str) -> None:
    for place, each in enumerate(kept):
        turn, number = each.turn, each.number
        expected = "assistant" if place % 2 else "user"
        if turn.role != expected:
            raise _misplaced(each, expected, where, field)
        if shows_nothing(turn.text):
            fault = f"field {field}, turn {number} ({turn.role}) is empty"
            raise bad(where, f"{fault}; fill it in or remove the row", f"field {field} has an empty turn")


def _misplaced(given: _Given, expected: str, where: str, field: str) -> BadRow:
    return bad(
        where,
        f"field {field}, turn {given.number} is {given.turn.role}'s, expected {expected}'s; "
        "a chat alternates, user first, after at most one system turn",
        f"the turns of field {field} do not alternate between user and assistant",
    )


def _fault(place: str, said: str, field: str, reason: str) -> BadRow:
    between = "" if said.startswith(":") else " "
    return BadRow(f"{place}{between}{said}", f"a turn of field {field} {reason}")
