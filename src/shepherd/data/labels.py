"""Labels that `datasets` stores as numbers, by the names that its schema gives them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

Naming = Callable[[Any], Any]


def namer(features: Mapping[str, Any] | None) -> Naming:
    """What puts the name of each label of a row in the place of its number, however deep it is.

    Anything but a row, such as a BadRow, stays as it is.
    """
    namings = {name: naming for name, feature in (features or {}).items() if (naming := _naming(feature))}
    if not namings:
        return lambda row: row

    def named(row: Any) -> Any:
        return _of_object(row, namings)

    return named


def _naming(feature: Any) -> Naming | None:
    """What names the labels of a value of this type; None where it holds none."""
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
    """Its name; -1 says that there is none."""
    if isinstance(value, int) and not isinstance(value, bool):
        return names[value] if 0 <= value < len(names) else None
    return value


def _of_object(value: Any, inner: Mapping[str, Naming]) -> Any:
    if not isinstance(value, Mapping):
        return value
    return {name: inner[name](each) if name in inner else each for name, each in value.items()}


def _of_list(naming: Naming | None) -> Naming | None:
    """For lists, and for objects of lists, which is what `datasets` makes of a list of objects."""
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
