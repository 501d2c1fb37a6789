"""Types and base classes of settings: for the run file, a site's policy and the plug-ins' own keys."""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterator, Mapping
from datetime import date
from difflib import get_close_matches
from typing import Annotated, Any, TypeVar, get_args

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, Strict, ValidationError

from shepherd.errors import SettingsError

T = TypeVar("T", bound=BaseModel)

# strict: `rounds = true` and `rounds = "3"` are mistakes, not 1 and 3; a whole number is a float
PositiveInt = Annotated[int, Strict(), Field(gt=0)]
NonNegativeInt = Annotated[int, Strict(), Field(ge=0)]
PositiveFloat = Annotated[float, Strict(), Field(gt=0.0)]
NonNegativeFloat = Annotated[float, Strict(), Field(ge=0.0)]
Share = Annotated[float, Strict(), Field(ge=0.0, le=1.0)]
PositiveShare = Annotated[float, Strict(), Field(gt=0.0, le=1.0)]
ShareBelowOne = Annotated[float, Strict(), Field(ge=0.0, lt=1.0)]


def _iso_date(day: Any) -> Any:
    if type(day) is date:  # TOML has dates of its own
        return day.isoformat()
    if isinstance(day, str) and day:
        try:
            written = date.fromisoformat(day).isoformat()
        except ValueError:
            written = ""
        if written != day:  # ISO 8601 knows 20261128 as well
            raise ValueError("write a date as 2026-11-28")
    return day


Day = Annotated[str, BeforeValidator(_iso_date)]
"""A date such as 2026-11-28, or ""."""


class Unchanging(BaseModel):
    """A model whose values never change; to set one says how to make another."""

    def __setattr__(self, name: str, value: Any) -> None:
        raise SettingsError(
            f"{name} cannot be set, since settings do not change once they are read; make others with"
            f' shepherd.overridden(settings, ["TABLE.{name}=VALUE"])'
        )


class Table(Unchanging):
    """A table of the run file: unknown keys are refused, values never change."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        allow_inf_nan=False,
        use_attribute_docstrings=True,
        protected_namespaces=(),
    )


def _file_name(name: str) -> str:
    return name if "." in name else name.replace("-", "_")


def _encoding(name: str) -> str:
    if name == "auto":
        return name
    try:
        kind = codecs.lookup(name)
    except (LookupError, ValueError):
        raise ValueError(
            'there is no such encoding; write "utf-8", "utf-16", "cp1252" or another one'
        ) from None
    if not kind._is_text_encoding:  # "zip" and its like
        raise ValueError('it is no encoding of text; write "utf-8", "utf-16", "cp1252" or another one')
    return name


def _delimiter(mark: str) -> str:
    if mark in ("auto", "tab"):
        return mark.replace("tab", "\t")
    if len(mark) != 1 or mark in '"\r\n':
        raise ValueError('write one character, such as ";", or "tab"')
    return mark


Encoding = Annotated[str, AfterValidator(_encoding)]
Delimiter = Annotated[str, AfterValidator(_delimiter)]

PartName = Annotated[str, AfterValidator(_file_name)]
"""Name of a plug-in: a file of a plug-in folder (hyphens count as underscores), or a dotted module outside
the package."""


class OpenTable(Unchanging):
    """A table in which one key finds a module; the other keys are those of the module's `Config`."""

    model_config = ConfigDict(frozen=True, extra="allow", use_attribute_docstrings=True)

    @property
    def own(self) -> dict[str, Any]:
        """The keys of the module's `Config`."""
        return dict(self.model_extra or {})


class PartTable(OpenTable):
    """A table in which `name` finds a module; the other keys are those of the module's `Config`."""

    name: PartName


def validated(kind: type[T], table: Mapping[str, Any], where: str) -> T:
    """Validate a table as `kind`; `where` names the file in messages.

    Raises:
        SettingsError: a key is unknown or missing, or a value is impossible; one sentence each.
    """
    try:
        return kind.model_validate(table, context={"where": where})
    except ValidationError as error:
        raise SettingsError(f"{where}: {'; '.join(_fault_sentences(kind, error))}") from error


def _fault_sentences(kind: type[BaseModel], error: ValidationError) -> list[str]:
    """One sentence per key; the alternatives of a union are joined."""
    groups: dict[tuple[int | str, ...], list[Any]] = {}
    for item in error.errors():
        groups.setdefault(_key_path(item), []).append(item)
    return [_fault_sentence(kind, place, items) for place, items in groups.items()]


def _key_path(item: Any) -> tuple[int | str, ...]:
    """The path to the key, without the names that pydantic gives the members of a union."""
    if item["type"] == "extra_forbidden":
        return tuple(item["loc"])
    return tuple(part for part in item["loc"] if isinstance(part, int) or part.isidentifier())


def _fault_sentence(kind: type[BaseModel], place: tuple[int | str, ...], items: list[Any]) -> str:
    key = ".".join(str(part) for part in place) or "the file"
    match items[0]["type"]:
        case "extra_forbidden":
            known = ", ".join(_known_keys(kind, place)) or "none"
            likely = _meant(kind, place)
            meant = f"; did you mean {' or '.join(likely)}?" if likely else ""
            return f"unknown key {key}; known keys there are {known}{meant}"
        case "missing":
            return f"key {key} is missing; add it"
        case _:
            expected = " or ".join(dict.fromkeys(map(_expectation, items))).replace(" or input should", " or")
            got = _shown_value(items[0]["input"], expected)
            return f"key {key}: {expected}{got and f' (got {got})'}"


def _shown_value(value: Any, expected: str) -> str:
    """The rejected value as text; of a table only the keys that `expected` names, "" if it names none."""
    if not isinstance(value, Mapping):
        return f"{value!r:.80}"
    named = (key for key in value if re.search(rf"\b{re.escape(str(key))}\b", expected))
    return ", ".join(f"{key} = {value[key]!r:.80}" for key in named)


def _expectation(item: Any) -> str:
    toml = {"tuple_type": "input should be a list", "model_type": "input should be a table"}
    message = item["msg"].removeprefix("Value error, ")
    return toml.get(item["type"], f"{message[:1].lower()}{message[1:]}")


def _meant(kind: type[BaseModel], place: tuple[int | str, ...]) -> list[str]:
    """Keys that an unknown one may stand for: its name in another table, else a similar one where it is."""
    *above, key = map(str, place)
    there = _known_keys(kind, place)
    everywhere = [*(("", name) for name in kind.model_fields), *_nested_keys(kind)]
    elsewhere = [f"{table}{name}" for table, name in everywhere if name == key]
    close = get_close_matches(key, there, n=1)
    return elsewhere if elsewhere and len(elsewhere) <= 3 else [".".join([*above, name]) for name in close]


def _nested_keys(kind: type[BaseModel]) -> Iterator[tuple[str, str]]:
    for table, field in kind.model_fields.items():
        for name in getattr(field.annotation, "model_fields", {}):
            yield f"{table}.", name


def _known_keys(kind: Any, loc: tuple[int | str, ...]) -> list[str]:
    for part in loc[:-1]:
        if part in getattr(kind, "model_fields", {}):
            kind = kind.model_fields[part].annotation
            # of a table that may be missing, the table
            kind = next((each for each in get_args(kind) if hasattr(each, "model_fields")), kind)
    return sorted(getattr(kind, "model_fields", {}))
