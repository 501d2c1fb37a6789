"""The keys of a JSON value as dotted paths: `losses.*`, `arms[].name`."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any

INTERVAL = {"value", "low", "high"}


def keys(value: Any, names: Collection[str], whole: Collection[str] = (), path: str = "") -> Iterator[str]:
    """Each key's path once or more; an interval is one value.

    Args:
        names: keys that come from the data, such as a client's name: each is a `*`.
        whole: paths below which keys are not looked at.
    """
    if path in whole or (isinstance(value, dict) and value.keys() == INTERVAL):
        yield path
    elif isinstance(value, dict) and value:
        for key, inner in value.items():
            part = "*" if key in names else key
            yield from keys(inner, names, whole, f"{path}.{part}" if path else part)
    elif isinstance(value, list) and any(isinstance(item, dict) for item in value):
        for item in value:
            yield from keys(item, names, whole, f"{path}[]")
    else:
        yield path
