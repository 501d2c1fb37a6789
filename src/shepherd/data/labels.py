"""Replace class labels that `datasets` stores as numbers by the names in its schema."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

Naming = Callable[[Any], Any]


def namer(features: Mapping[str, Any] | None) -> Naming:
    """A function that replaces the number of each label in a row by its name, at any depth.

    It returns anything but a row, such as a BadRow, unchanged.
    """
    namings = {name: naming for name, feature in (features or {}).items() if (naming := _naming(feature))}
    if not namings:
        return lambda row: row

    def named(row: Any) -> Any:
        return _of_object(row, namings)

    return named


def _naming(feature: Any) -> Naming | None:
    """A function that names the labels in a value of this type; None where the type has none."""
    if isinstance(feature, Mapping):
        inner = {name: naming for name, each in feature.items() if (naming := _naming(each))}
        return (lambda value: _of_object(value, inner)) if inner else None
    if isinstance(feature, list | tuple):
        return _of_list(_naming(feature[0])) if feature else None
    if type(feature).__name__ == "ClassLabel":
        names = feature.names
        return lambda value: _label(value, names)
    inside = getattr(feature, "feature", None)
    return _of_list(_naming(inside)) if inside is not None else None


def _label(value: Any, names: list[str]) -> Any:
    """The name of a label; None for -1, which means no label.

    A label that is not a name is a number, also as JSON and CSV files write it: 1.0 and "1".
    """
    if value in names or isinstance(value, bool):
        return value
    number = _number(value)
    if number is None:
        return value
    return names[number] if 0 <= number < len(names) else None if number == -1 else value


def _number(value: Any) -> int | None:
    """The whole number that a value is, or that its text writes; None for anything else."""
    if isinstance(value, str) and re.fullmatch(r"\s*-?\d{1,9}(\.0+)?\s*", value, re.ASCII):
        value = float(value)
    if isinstance(value, int | float) and value == value // 1:
        return int(value)
    return None


def _of_object(value: Any, inner: Mapping[str, Naming]) -> Any:
    if isinstance(value, list):  # rows, where the schema has an object of lists
        return [_of_row(each, inner) for each in value]
    if not isinstance(value, Mapping):
        return value
    return {name: inner[name](each) if name in inner else each for name, each in value.items()}


def _of_row(row: Any, inner: Mapping[str, Naming]) -> Any:
    if not isinstance(row, Mapping):
        return row
    return {name: inner[name]([each])[0] if name in inner else each for name, each in row.items()}


def _of_list(naming: Naming | None) -> Naming | None:
    """A function for lists, and for objects of lists, as which `datasets` stores lists of objects."""
    if naming is None:
        return None

    def name(value: Any) -> Any:
        if isinstance(value, list):
            return [naming(each) for each in value]
        if isinstance(value, Mapping):
            rows = [dict(zip(value, each, strict=True)) for each in zip(*value.values(), strict=True)]
            return [naming(row) for row in rows]
        return value

    return name
