"""Read a row with two answers to one prompt, a better and a worse one, as turns; any other row as it is.

The forms are those of TRL's preference data sets: texts or lists of turns, with the prompt in a field of its
own or in front of both answers, where it may also be a dialogue of "Human:" and "Assistant:" (Anthropic's
hh-rlhf). What two texts without such a dialogue begin with in common is not taken for a prompt: a template
has to know what was asked.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from shepherd.data.chats import ROLE_KEYS, ROLES, Chat, Turn, chat
from shepherd.data.fields import (
    CHATS,
    CHOSEN,
    CONTEXT,
    PROMPTS,
    REJECTED,
    RESPONSES,
    alike,
    bad,
    filled,
    from_cell,
    is_filled,
    pick,
    plain_name,
    text_of,
)
from shepherd.data.layouts import (
    RowTurns,
    both_filled,
    known_names,
    missing,
    require_full,
    system_of,
    user_turn,
)
from shepherd.data.layouts import (
    turns_of as turns_of_one,
)
from shepherd.settings import DataTable, FieldsTable

ASKED = {
    "role": "user",
    "content": "-",
}  # in front of turns that begin with an answer
_SPEAKER = re.compile(r"(?:^|\n\n)(Human|Assistant):[ \t]?")
_ROLE = {"Human": "user", "Assistant": "assistant"}
_DEFAULT = FieldsTable().instruction


def turns_of(row: Mapping[str, Any], table: DataTable, where: str) -> RowTurns:
    """Read a row as turns that end with an assistant's, and for a pair as those of the other answer, too.

    Raises:
        BadRow: a field is missing, empty or no text, a chat's turns are not in order, or the two answers of a
            pair are to different prompts.
    """
    names = _pair_of(row, table, where)
    return turns_of_one(row, table, where) if names is None else _read(row, names, table, where)


def answers_from(chosen: Sequence[Turn], rejected: Sequence[Turn]) -> int:
    """Number of turns of the prompt that two chats share; both go on with an assistant's turn.

    Where both are the same, or one ends where the other goes on, it is that before the last turn of the
    shorter one.
    """
    most = min(len(chosen), len(rejected)) - 1
    return next((place for place in range(most) if chosen[place] != rejected[place]), most)


def _pair_of(row: Mapping[str, Any], table: DataTable, where: str) -> tuple[str, str] | None:
    """The fields of the better and the worse answer; None where the row is no pair.

    Under "auto" it is one where it has both fields, or one of them and nothing else to train on.
    """
    asked = table.fields.chosen, table.fields.rejected
    names = known_names(asked[0], CHOSEN), known_names(asked[1], REJECTED)
    there = [alike(row, each) for each in names]
    if not any(there):
        return None
    if not all(there):
        others = (*known_names(table.fields.response, RESPONSES), *known_names(table.fields.messages, CHATS))
        has = pick(row, names[0] if there[0] else names[1])
        if filled(row, others) or not _is_answer(from_cell(row[has])):
            return None
        lacks = 1 if there[0] else 0
        key = "data.fields." + ("chosen", "rejected")[lacks]
        raise missing(row, names[lacks][0] if names[lacks] else ("chosen", "rejected")[lacks], where, key)
    found = pick(row, names[0]), pick(row, names[1])
    values = [from_cell(row[name]) for name in found]
    if asked == ("auto", "auto") and any(is_filled(v) and not _is_answer(v) for v in values):
        return None  # columns of this name that are something else, such as a mark
    return found


def _is_answer(value: Any) -> bool:
    return isinstance(value, str | list | tuple | Mapping)


def _read(row: Mapping[str, Any], names: tuple[str, str], table: DataTable, where: str) -> RowTurns:
    for name, key in zip(names, ("chosen", "rejected"), strict=True):
        if not is_filled(from_cell(row[name])):
            require_full("", name, where, f"data.fields.{key}")
    values = [_as_turns(row[name]) for name in names]
    if any(isinstance(value, list) for value in values):
        return _chats(row, names, values, table, where)
    field = _prompt_field(row, table)
    texts = [text_of(row[name], where, f"field {name}") for name in names]
    if not field and all(map(_is_dialogue, texts)):
        return _chats(row, names, [_dialogue(text) for text in texts], table, where)
    asked = _asked(row, field, table, where)
    chosen, rejected = ((*asked.turns, Turn(role="assistant", text=text)) for text in texts)
    for text, name in zip(texts, names, strict=True):
        require_full(text, name, where, "")
    return replace(asked, turns=chosen, rejected=rejected, used=_used(row, asked.used, names, chosen, where))


def _chats(
    row: Mapping[str, Any],
    names: tuple[str, str],
    values: Sequence[Any],
    table: DataTable,
    where: str,
) -> RowTurns:
    """Two answers as lists of turns: whole chats with their prompt, or what follows a prompt."""
    field = _prompt_field(row, table)
    begin = [_begins_with_answer(value) for value in values]
    if any(begin) and not all(begin):
        fault = f"one of the fields {names[0]} and {names[1]} holds the prompt, and the other does not"
        raise bad(where, f"{fault}; write both alike", fault)
    if all(begin):
        asked = _asked(row, field, table, where)
        read = [chat([ASKED, *value], where, name) for name, value in zip(names, values, strict=True)]
        read = [replace(each, turns=(*asked.turns, *each.turns[1:])) for each in read]
    else:
        read = [chat(value, where, name) for name, value in zip(names, values, strict=True)]
        asked = _whole(row, field, read, table, where)
        if asked.turns:
            read = [replace(each, turns=(*asked.turns, *each.turns)) for each in read]
    chosen, rejected = (each.turns for each in read)
    place = answers_from(chosen, rejected)
    if chosen[place].role != "assistant" or rejected[place].role != "assistant":
        fault = f"the chats of the fields {names[0]} and {names[1]} differ in turn {place + 1}, the user's"
        raise bad(
            where,
            f"{fault}; both must answer the same prompt",
            f"the fields {names[0]} and {names[1]} hold different prompts",
        )
    if not all(any(t.trained and t.role == "assistant" for t in each[place:]) for each in (chosen, rejected)):
        fault = f"an answer of the fields {names[0]} and {names[1]} is marked as not to be trained"
        raise bad(where, f"{fault}; remove the row", fault)
    return RowTurns(
        turns=chosen,
        rejected=rejected,
        used=_used(row, asked.used, names, chosen, where),
        unread=tuple(dict.fromkeys((*asked.unread, *(key for each in read for key in each.unread)))),
        changed=tuple(dict.fromkeys((*asked.changed, *(what for each in read for what in each.changed)))),
    )


def _whole(
    row: Mapping[str, Any], field: str, read: Sequence[Chat], table: DataTable, where: str
) -> RowTurns:
    """What the row says beside two whole chats: a system text to put in front, and a prompt field."""
    turns, used, changed = tuple[Turn, ...](), set[str](), []
    system, name = system_of(row, table, where)
    first = read[0].turns[0]
    if system and first.role != "system":
        turns, used = (Turn(role="system", text=system),), {name}
    elif system and first.text == system:
        used = {name}
    elif system:
        changed.append(f"field {name} and the chat's system turn are filled and differ; the turn is read")
    if field:
        said = from_cell(row[field])
        place = answers_from(read[0].turns, read[1].turns)
        prompt = read[0].turns[:place]
        if isinstance(said, list | tuple):
            same = chat(said, where, field, answered=False).turns == prompt
        else:
            same = text_of(said, where, f"field {field}").strip() in [turn.text.strip() for turn in prompt]
        if same:
            used.add(field)
        else:
            changed.append(both_filled("chosen", field))
    return RowTurns(turns=turns, used=frozenset(used), changed=tuple(changed))


def _prompt_field(row: Mapping[str, Any], table: DataTable) -> str:
    """The field of the prompt; "" where the row fills none."""
    asked = table.fields.instruction
    names = (asked, *PROMPTS) if asked == _DEFAULT else (asked,)
    return next(iter(filled(row, names)), "")


def _asked(row: Mapping[str, Any], field: str, table: DataTable, where: str) -> RowTurns:
    """Turns of a prompt in a field of its own."""
    if not field:
        name = next(iter(alike(row, (table.fields.instruction, *PROMPTS))), "")
        if name:
            require_full("", name, where, "data.fields.instruction")
        raise missing(row, table.fields.instruction, where, "data.fields.instruction")
    if not isinstance(_as_turns(row[field]), list):
        fields = table.fields.model_copy(update={"instruction": field})
        return user_turn(row, table.model_copy(update={"fields": fields}), where)
    read = chat(row[field], where, field, answered=False)
    if read.turns[-1].role != "user":
        fault = f"field {field} ends with the assistant's turn"
        raise bad(where, f"{fault}; end the prompt with the user's", fault)
    turns, used, changed = read.turns, {field}, list(read.changed)
    if context := next(iter(filled(row, known_names(table.fields.context, CONTEXT))), ""):
        turns = (*turns[:-1], replace(turns[-1], context=text_of(row[context], where, f"field {context}")))
        used.add(context)
    system, name = system_of(row, table, where)
    if system and turns[0].role != "system":
        turns, used = (Turn(role="system", text=system), *turns), {field, name}
    elif system:
        used |= {name} if turns[0].text == system else set()
        changed += [] if turns[0].text == system else [both_filled(field, name)]
    return RowTurns(turns=turns, used=frozenset(used), unread=read.unread, changed=tuple(changed))


def _used(
    row: Mapping[str, Any],
    used: frozenset[str],
    names: tuple[str, str],
    chosen: Sequence[Turn],
    where: str,
) -> frozenset[str]:
    """Fields that count as read: also a chat that is the one with the better answer once more."""
    same = set[str]()
    for name in filled(row, CHATS):
        value = from_cell(row[name])
        if isinstance(value, list) and all(isinstance(turn, Mapping) for turn in value):
            given = [
                (ROLES.get(plain_name(str(turn.get("role", "")))), turn.get("content")) for turn in value
            ]
            same |= {name} if given == [(turn.role, turn.text) for turn in chosen] else set()
    return used | {*names} | same


def _as_turns(value: Any) -> Any:
    """A list of turns, or of one turn that stands alone; any other value as it is."""
    value = from_cell(value)
    if (
        isinstance(value, Mapping)
        and alike(value, ROLE_KEYS)
        and not any(isinstance(inner, list | tuple) for inner in value.values())
    ):
        return [value]
    held = [each for each in value if each is not None] if isinstance(value, list | tuple) else []
    turns = bool(held) and all(isinstance(turn, Mapping) and alike(turn, ROLE_KEYS) for turn in held)
    return held if turns else value


def _begins_with_answer(value: Any) -> bool:
    """Whether a list of turns begins with an assistant's, so that its prompt is elsewhere."""
    first = value[0] if isinstance(value, list) and value else {}
    key = pick(first, ROLE_KEYS) if isinstance(first, Mapping) else ""
    return ROLES.get(plain_name(str(first.get(key, "")))) == "assistant" if key else False


def _is_dialogue(text: str) -> bool:
    """Whether a text is a dialogue of "Human:" and "Assistant:" that begins with the first.

    >>> _is_dialogue("\\n\\nHuman: Who?\\n\\nAssistant: I."), _is_dialogue("Who? Human: I")
    (True, False)
    """
    first = _SPEAKER.match(text.lstrip() if text.strip().startswith("Human") else text)
    return bool(first and first[1] == "Human" and "\n\nAssistant:" in text)


def _dialogue(text: str) -> list[dict[str, str]]:
    """The turns of a dialogue of "Human:" and "Assistant:"; turns of one speaker in a row are joined.

    >>> _dialogue("\\n\\nHuman: Who?\\n\\nAssistant: I.")
    [{'role': 'user', 'content': 'Who?'}, {'role': 'assistant', 'content': 'I.'}]
    """
    parts = _SPEAKER.split("\n\n" + text.lstrip())[1:]
    turns: list[dict[str, str]] = []
    for speaker, said in zip(parts[::2], parts[1::2], strict=True):
        role, own = _ROLE[speaker], said.strip()
        if turns and turns[-1]["role"] == role:
            turns[-1]["content"] = f"{turns[-1]['content']}\n\n{own}".strip()
        else:
            turns.append({"role": role, "content": own})
    return turns
