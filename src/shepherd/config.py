"""What every table of settings is made of, for the run file, a site's policy and the plug-ins' own keys."""

from __future__ import annotations

import codecs
from datetime import date
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, Strict

# strict: `rounds = true` and `rounds = "3"` are mistakes, not 1 and 3; a whole number is a float
PositiveInt = Annotated[int, Strict(), Field(gt=0)]
NonNegativeInt = Annotated[int, Strict(), Field(ge=0)]
PositiveFloat = Annotated[float, Strict(), Field(gt=0.0)]
NonNegativeFloat = Annotated[float, Strict(), Field(ge=0.0)]
Share = Annotated[float, Strict(), Field(ge=0.0, le=1.0)]
PositiveShare = Annotated[float, Strict(), Field(gt=0.0, le=1.0)]
ShareBelowOne = Annotated[float, Strict(), Field(ge=0.0, lt=1.0)]


def _day(day: Any) -> Any:
    if type(day) is date:  # TOML has dates of its own
        return day.isoformat()
    if isinstance(day, str) and day:
        try:
            written = date.fromisoformat(day).isoformat()
        except ValueError:
            written = ""
        if written != day:  # ISO 8601 knows 20261128 as well
            raise ValueError("write a day as 2026-11-28")
    return day


Day = Annotated[str, BeforeValidator(_day)]
"""A day as 2026-11-28, or ""."""


class Table(BaseModel):
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
"""A file of a plug-in folder, in which a hyphen is as good as an underscore, or a dotted module outside."""


class OpenTable(BaseModel):
    """One key finds a module; the other keys are that module's own `Config`."""

    model_config = ConfigDict(frozen=True, extra="allow", use_attribute_docstrings=True)

    @property
    def own(self) -> dict[str, Any]:
        """The keys that are the module's."""
        return dict(self.model_extra or {})


class PartTable(OpenTable):
    """`name` finds the module; the other keys are that module's own `Config`."""

    name: PartName
