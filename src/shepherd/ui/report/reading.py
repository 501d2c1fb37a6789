"""Read files of a run folder without trusting them: a key may be missing, a number may not be one."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from shepherd.errors import FolderError
from shepherd.io.atomic import disk_errors
from shepherd.visible import shown

Row = dict[str, Any]
_MAX_NUMBER = 1e300  # the difference of two such numbers is still finite


def read_object(path: Path, fix: str) -> Row:
    """The JSON object of a file; empty if there is no such file.

    Raises:
        FolderError: the file is damaged; the sentence ends with `fix`.
    """
    with disk_errors(path.parent):
        if not path.is_file():
            return {}
        content = path.read_bytes()
    try:
        found = json.loads(content)
    except ValueError as error:
        raise FolderError(f"{path} is not JSON ({error}); {fix}") from error
    if not isinstance(found, dict):
        raise FolderError(f"{path} contains no JSON object; {fix}")
    return found


def read_lines(path: Path) -> list[Row]:
    """The objects of a JSON-lines file, without its other lines; empty if there is no such file."""
    with disk_errors(path.parent):
        content = path.read_bytes() if path.is_file() else b""
    return list(_objects(content.split(b"\n")))


def _objects(lines: list[bytes]) -> Iterator[Row]:
    for line in lines:
        try:
            found = json.loads(line)
        except ValueError:
            continue
        if isinstance(found, dict):
            yield found


def table(value: Any) -> Row:
    """`value` if it is a mapping, else an empty dict."""
    return dict(value) if isinstance(value, Mapping) else {}


def items(value: Any) -> list[Any]:
    """`value` if it is a list or tuple, else an empty list."""
    return list(value) if isinstance(value, list | tuple) else []


def number(value: Any) -> float | int | None:
    """`value` if it is a finite number, else None.

    >>> number(0.5), number(True), number("0.5"), number(float("nan")), number(10**400)
    (0.5, None, None, None, None)
    """
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return value if -_MAX_NUMBER < value < _MAX_NUMBER else None


def text(value: Any) -> str:
    """`value` as text; None is empty."""
    return "" if value is None else str(value)


def interval(value: Any) -> Row | None:
    """An estimate with its 95% interval; a plain number gets no bounds, and anything else is None.

    >>> interval({"value": 0.5, "low": 0.4, "high": 0.6}) == {"value": 0.5, "low": 0.4, "high": 0.6}
    True
    >>> interval(2.0), interval({"value": None})
    ({'value': 2.0, 'low': None, 'high': None}, None)
    """
    given = table(value) if isinstance(value, Mapping) else {"value": value}
    ends = {key: number(given.get(key)) for key in ("value", "low", "high")}
    return None if ends["value"] is None else ends


def numbers(value: Any) -> dict[str, float | int | None]:
    """The values of a mapping as numbers or None, by name; empty if `value` is not a mapping."""
    return {str(key): number(item) for key, item in table(value).items()}


def plain(value: Any) -> Any:
    """A value that both JSON and HTML can represent.

    A number that is not finite becomes None. Control characters in text become escapes (`visible.shown`),
    since a model may have been made to write anything; every line ends with a newline.
    """
    if isinstance(value, Mapping):
        return {plain(str(key)): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, str):
        return shown(value.replace("\r\n", "\n").replace("\r", "\n"))
    return None if isinstance(value, float) and not math.isfinite(value) else value
