"""Fields of a row: found by name or a similar spelling, and their values read as text."""

from __future__ import annotations

import ast
import json
import unicodedata
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import date
from functools import lru_cache
from numbers import Integral
from typing import Any

from shepherd.data.folding import seen, shows_nothing
from shepherd.errors import BadRow

CHATS, CONTEXTS, RESPONSES = ("messages", "conversations"), ("context", "input"), ("response", "output")
"""Field names that "auto" reads for each part: the first of them that a row fills."""
SYSTEMS, HISTORIES = ("system", "system_prompt"), ("history",)
"""Field names of a row's system prompt, and of the exchanges before its own."""
CONTEXT = ("context",)
"""Context of a prompt that is a list of turns; `input` is often that prompt once more."""
CHOSEN, REJECTED = ("chosen",), ("rejected",)
"""Field names that "auto" reads for the better and the worse answer of a pair."""
PROMPTS = ("prompt", "question")
"""Field names of the instruction of a pair of answers, where the row has no `instruction`."""
TEXTS = ("text", "input_text", "output_text")
"""Types of the parts of a message that are text."""


@lru_cache(maxsize=4096)
def plain_name(name: str) -> str:
    """Normalise a field's name: no spaces, marks or underscores, lower case.

    >>> plain_name("\\ufeff Input "), plain_name("System-Prompt"), plain_name("system_prompt")
    ('input', 'systemprompt', 'systemprompt')
    """
    bare = unicodedata.normalize("NFKC", seen(name)).casefold()
    return "".join(letter for letter in bare if letter not in "_-\"'`" and not letter.isspace()) or name


def alike(row: Mapping[str, Any], names: Sequence[str]) -> Sequence[str]:
    """The row's spellings of the fields `names` (equal under `plain_name`), in the order of `names`."""
    return _alike(tuple(row), tuple(names))


@lru_cache(maxsize=1024)  # rows of a file have the same names
def _alike(own: tuple[str, ...], names: tuple[str, ...]) -> tuple[str, ...]:
    near: dict[str, list[str]] = {}
    for name in own:
        near.setdefault(plain_name(str(name)), []).append(name)
    found: dict[str, None] = {}
    for name in names:
        found |= dict.fromkeys([*([name] if name in own else []), *near.get(plain_name(name), [])])
    return tuple(found)


def filled(row: Mapping[str, Any], names: Sequence[str]) -> list[str]:
    """The row's spellings of those fields of `names` that are filled, in the order of `names`."""
    return [name for name in alike(row, names) if is_filled(row[name])]


def pick(row: Mapping[str, Any], names: Sequence[str]) -> str:
    """The field to read: the first that is filled, else the first that exists, else the first name."""
    return next(iter((*filled(row, names), *alike(row, names), *names)), "")


def is_filled(value: Any) -> bool:
    """Whether a value holds anything: not null, blank text, or a list or object of these only.

    >>> [is_filled(value) for value in (None, float("nan"), " ", [], [{"role": None}], 0, "0", ["x"])]
    [False, False, False, False, False, True, True, True]
    """
    match value:
        case None:
            return False
        case str():
            return not shows_nothing(value)
        case float():
            return value == value
        case Mapping():
            return any(map(is_filled, value.values()))
        case list() | tuple():
            return any(map(is_filled, value))
        case _:
            return type(value).__name__ not in ("NAType", "NaTType")  # pandas' own


def from_cell(value: Any) -> Any:
    """Parse a cell that holds a list, an object or a null, as JSON or as a Python literal.

    Any other text stays as it is.

    >>> from_cell('[["a", "b"]]'), from_cell(" null"), from_cell("[{'role': None}]"), from_cell("[a]")
    ([['a', 'b']], None, [{'role': None}], '[a]')
    """
    if not isinstance(value, str) or not value.lstrip().startswith(("[", "{", "null")):
        return value
    with suppress(ValueError, RecursionError):
        return json.loads(value)
    with suppress(ValueError, SyntaxError, RecursionError, MemoryError):
        found = ast.literal_eval(value.strip())  # reads literals alone, and runs nothing
        return found if isinstance(found, list | dict) else value
    return value


def text_of(value: Any, place: str, what: str) -> str:
    """Read a value as text: "" for a null, whole numbers in digits, lists of text parts joined.

    A list of one plain text is that text; several may be paragraphs, words or other answers, so that nothing
    says how to join them.

    Args:
        place: the row's place, for the message.
        what: the field, for the message.

    Raises:
        BadRow: the value is anything else.
    """
    if isinstance(value, str):
        return _whole(value, place, what)
    if value is None or (isinstance(value, float) and value != value):
        return ""
    if isinstance(value, Integral) and not isinstance(value, bool):  # loses nothing
        return str(int(value))
    if is_texts(value) and len(texts := [text for text in value if is_filled(text)]) <= 1:
        return text_of(texts[0], place, what) if texts else ""
    if is_texts(value):
        fault = f"{what} is a list of several texts"
        raise bad(place, f"{fault}; join them into one, or keep one", fault)
    if is_parts(value):
        return "".join(_part(part, place, what) for part in value if part is not None)
    if value != {} and not is_filled(value):
        return ""
    raise bad(
        place,
        f"{what} is {kind(value)}, expected text; write it as text",
        f"{what} is {sort(value)} and no text",
    )


def name_of(value: Any, place: str, what: str) -> str:
    """Read a value as a name: as text, and also dates, booleans, and floats that are whole numbers.

    Raises:
        BadRow: the value is anything else.
    """
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    if isinstance(value, date):
        return value.isoformat()
    if isinstance(value, bool) or type(value).__name__ == "bool_":
        return str(bool(value)).lower()
    return text_of(value, place, what)


def is_parts(value: Any) -> bool:
    """Whether a value is a text in parts, as in OpenAI's chats."""
    if not isinstance(value, list | tuple):
        return False
    given = [part for part in value if part is not None]
    parts = [part for part in given if isinstance(part, Mapping) and {"text", "type"} & part.keys()]
    return bool(parts) and all(part in parts or isinstance(part, str) for part in given)


def is_texts(value: Any) -> bool:
    """Whether a value is a list of plain texts, or of nulls."""
    return isinstance(value, list | tuple) and all(text is None or isinstance(text, str) for text in value)


def part_keys(value: Any) -> list[str]:
    """Keys of the parts of a text that are filled and hold neither its text nor the part's type.

    >>> part_keys([{"type": "text", "text": "a", "citations": ["b"]}, "c"]), part_keys("a")
    (['citations'], [])
    """
    parts = value if is_parts(value) else ()
    keys = (
        key for part in parts if isinstance(part, Mapping) for key, inner in part.items() if is_filled(inner)
    )
    return list(dict.fromkeys(str(key) for key in keys if key not in ("type", "text")))


def _part(part: Any, place: str, what: str) -> str:
    if isinstance(part, str):
        return _whole(part, place, what)
    said = part.get("type")
    if is_filled(said) and said not in TEXTS:
        fault = f"{what} holds a part of type {said!r}, which is no text"
        raise bad(
            place, f"{fault}; leave the row out or write it as text", f"{what} holds a part that is no text"
        )
    return text_of(part.get("text"), place, what)


def _whole(text: str, place: str, what: str) -> str:
    if not text.isascii() and any("\ud800" <= letter <= "\udfff" for letter in set(text)):
        fault = f"{what} holds half of a surrogate pair"  # JSON allows it, UTF-8 does not
        raise bad(place, f"{fault}; write the whole character", fault)
    return text


def bad(place: str, said: str, reason: str) -> BadRow:
    """An error for a row, with the reason under which such rows are counted."""
    return BadRow(f"{place}: {said}", reason)


def kind(value: Any) -> str:
    """The kind of a value, for a message on one row."""
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


def sort(value: Any) -> str:
    """The kind of a value without the value itself, for counts over rows."""
    match value:
        case bool():
            return "true or false"
        case int() | float():
            return "a number"
        case _:
            return kind(value)
