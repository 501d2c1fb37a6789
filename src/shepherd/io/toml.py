r"""TOML as people write it: with a byte order mark, in UTF-16, and with Windows paths in double quotes.

In double quotes a backslash begins an escape. Of "C:\Users" that is an error; of "C:\new" it is a line break,
silently. Both are reported here in one sentence.
"""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

from shepherd.errors import SettingsError
from shepherd.io.decoding import decoded

ESCAPED = {"\b": r"\b", "\t": r"\t", "\n": r"\n", "\f": r"\f", "\r": r"\r"}
_BACKSLASH = re.compile(r'"([^"]*\\.*?)"?\s*(?:#.*)?$')
SINGLE = "in double quotes a backslash begins an escape: write the path in single quotes"


def read(path: Path, what: str) -> dict[str, Any]:
    """The tables of a TOML file in UTF-8 or UTF-16; `what` says what it is, as "run file".

    Raises:
        SettingsError: it is missing, unreadable, no text, or not TOML; names the line.
    """
    if path.is_dir():
        inside = sorted(each.name for each in path.glob("*.toml"))
        named = f"name a file in it, such as {path / inside[0]}" if inside else "name the file"
        raise SettingsError(f"{what} {path} is a folder; {named}")
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise SettingsError(f"{what} {path} cannot be read ({error.strerror}); check the path") from error
    try:
        text = decoded(raw)
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise SettingsError(f"{what} {path}, line {line} is not UTF-8; save the file as UTF-8") from error
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        hint = _hint(text, str(error)) or "fix that line"
        raise SettingsError(f"{what} {path} is not TOML: {error}; {hint}") from error


def value(text: str) -> Any:
    """One value in TOML, or the text itself where it is a bare word, such as runs/two.

    Raises:
        SettingsError: it is a text in double quotes with a backslash that begins no escape.
    """
    try:
        return tomllib.loads(f"x = {text}")["x"]
    except tomllib.TOMLDecodeError:
        if hint := _single_quotes(text) if text.startswith('"') else "":
            raise SettingsError(f"{text} is no text in TOML: {hint}") from None
        return text


def require_no_escape(text: str, key: str) -> None:
    """Raise SettingsError where a path that is not there holds what an escape of TOML has become."""
    if any(letter in ESCAPED for letter in text):
        meant = "".join(ESCAPED.get(letter, letter) for letter in text)
        raise SettingsError(f"key {key}: there is no such path; {SINGLE}, '{meant}'")


def _hint(text: str, error: str) -> str:
    found = re.search(r"at line (\d+)", error)
    lines = text.split("\n")
    line = (
        lines[int(found[1]) - 1] if found else next((line for line in lines if _BACKSLASH.search(line)), "")
    )
    if hint := _single_quotes(line.rstrip("\r")):
        return hint
    if re.search("[\u201c\u201d\u201e\u2018\u2019\u201a\u00ab\u00bb]", line):
        return 'it has typographic quotation marks; write straight ones, "..."'
    return ""


def _single_quotes(line: str) -> str:
    found = _BACKSLASH.search(line)
    return f"{SINGLE}, '{found[1]}'" if found else ""
