"""Decide from the text alone whether an answer is right.

A check is a small JSON-able mapping: its `kind`, and what that kind needs. Every kind bounds the
length of the answer, so neither an echoed prompt nor everything at once is right.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Protocol


class Check(Protocol):
    """One way of judging an answer."""

    def passes(self, text: str) -> bool:
        """Is this text a right answer?"""
        ...


@dataclass(frozen=True, slots=True)
class Exact:
    """The answer itself, whatever its case, spacing and final punctuation."""

    answer: str

    def passes(self, text: str) -> bool:
        return normal(text) == normal(self.answer)


@dataclass(frozen=True, slots=True)
class OneOf:
    """Any one of several answers."""

    answers: tuple[str, ...]

    def passes(self, text: str) -> bool:
        return normal(text) in {normal(answer) for answer in self.answers}


@dataclass(frozen=True, slots=True)
class SameSet:
    """A comma list that holds each item once, in any order, after the words it begins with."""

    items: tuple[str, ...]
    begins: str = ""

    def passes(self, text: str) -> bool:
        start, rest = text.strip()[: len(self.begins)], text.strip()[len(self.begins) :]
        return start.lower() == self.begins.lower() and sorted(listed(rest)) == sorted(
            normal(item) for item in self.items
        )


@dataclass(frozen=True, slots=True)
class Members:
    """A list of `count` different members of a set, and nothing else."""

    items: tuple[str, ...]
    count: int

    def passes(self, text: str) -> bool:
        found = listed(text)
        return len(found) == len(set(found)) == self.count and set(found) <= set(
            normal(item) for item in self.items
        )


@dataclass(frozen=True, slots=True)
class Contains:
    """A short text of a given form that names what it must.

    It has `least` to `most` words, begins and ends as told, and holds every one of `phrases` as
    whole words.
    """

    phrases: tuple[str, ...]
    most: int
    least: int = 1
    begins: str = ""
    ends: str = ""

    def passes(self, text: str) -> bool:
        plain = normal(text)
        return (
            self.least <= len(plain.split()) <= self.most
            and plain.startswith(self.begins.lower())
            and plain.endswith(normal(self.ends))
            and all(holds(plain, phrase) for phrase in self.phrases)
        )


AnyCheck = Exact | OneOf | SameSet | Members | Contains

KINDS: Mapping[str, type[AnyCheck]] = {
    "exact": Exact,
    "one_of": OneOf,
    "same_set": SameSet,
    "members": Members,
    "contains": Contains,
}


def passes(check: Mapping[str, Any], text: str) -> bool:
    """Judge an answer by a row's `check`.

    >>> passes({"kind": "exact", "answer": "baker"}, " Baker. ")
    True
    >>> passes({"kind": "members", "items": ["owl", "wren", "lark"], "count": 2}, "- wren\\n- owl")
    True

    Raises:
        ValueError: the check is of no known kind, or lacks what its kind needs.
    """
    fields = dict(check)
    kind = fields.pop("kind", None)
    if kind not in KINDS:
        raise ValueError(f"no check of kind {kind!r}; use one of {', '.join(KINDS)}")
    try:
        judge: Check = KINDS[kind](**fields)
    except TypeError as error:
        raise ValueError(f"a check of kind {kind!r} cannot have {sorted(fields)}: {error}") from error
    return judge.passes(text)


def as_dict(check: AnyCheck) -> dict[str, Any]:
    """A check as a row carries it."""
    kind = next(name for name, made in KINDS.items() if type(check) is made)
    fields = {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(check).items()}
    return {"kind": kind, **fields}


def normal(text: str) -> str:
    """Lower case, single spaces, no final punctuation."""
    return " ".join(text.lower().split()).rstrip(".!,; ")


def listed(text: str) -> list[str]:
    """The items of a list written with commas, or a line each with or without a dash."""
    items = (normal(item.strip().removeprefix("- ")) for item in re.split(r"[,\n]", text))
    return [item for item in items if item]


def holds(plain: str, phrase: str) -> bool:
    """Does normalised text hold a phrase as whole words?"""
    return re.search(rf"(?<!\w){re.escape(normal(phrase))}(?!\w)", plain) is not None
