"""Files that are nearly right: another delimiter or another encoding, named with the way to convert them."""

from __future__ import annotations

import codecs
from pathlib import Path

from shepherd.errors import DataError

HEAD_BYTES = 2**16
TEXT = (".csv", ".tsv", ".json", ".jsonl", ".ndjson")
NAMES = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}


def require_plain(path: Path) -> None:
    """Raise DataError where a file is no text or not UTF-8, or a table has another delimiter.

    The message has a command that writes the file anew. What cannot be read at all is left to the reader.
    """
    suffix = path.suffix.lower()
    if suffix not in TEXT or not path.is_file():
        return
    encoding = _encoding(path)
    delimiter = _delimiter(path, encoding) if suffix in (".csv", ".tsv") else ""
    wanted = "\t" if suffix == ".tsv" else ","
    faults = [f"is not UTF-8 but {encoding}"] if encoding != "utf-8-sig" else []
    if delimiter and delimiter != wanted:
        faults.append(f"is separated by {NAMES[delimiter]}, not by {NAMES[wanted]}")
    if faults:
        raise DataError(f"{path} {' and '.join(faults)}; convert it: {_command(path, encoding, delimiter)}")


def _encoding(path: Path) -> str:
    """utf-8-sig where it is UTF-8, with a mark or without; else what it seems to be."""
    with path.open("rb") as file:
        head = file.read(HEAD_BYTES)
    if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "utf-16"
    if b"\0" in head:
        raise DataError(
            f"{path} is not text, whatever its name says; export it as {path.suffix.lower()[1:].upper()}"
        )
    decoder = codecs.getincrementaldecoder("utf-8")()
    try:
        with path.open("rb") as file:
            while piece := file.read(HEAD_BYTES):
                decoder.decode(piece)
            decoder.decode(b"", final=True)
    except UnicodeDecodeError:
        return "cp1252"
    return "utf-8-sig"


def _delimiter(path: Path, encoding: str) -> str:
    """What parts the names in the first line most often; "" where nothing does."""
    with path.open(encoding=encoding, errors="replace", newline="") as file:
        first = file.readline(HEAD_BYTES)
    counts = {mark: first.count(mark) for mark in NAMES}
    most = max(counts, key=lambda mark: counts[mark])
    return most if counts[most] else ""


def _command(path: Path, encoding: str, delimiter: str) -> str:
    new = path.with_stem(path.stem + "-utf8")
    source = f"open({str(path)!r}, encoding={encoding!r}, newline='')"
    target = f"open({str(new)!r}, 'w', encoding='utf8', newline='')"
    if not delimiter:
        return f'python3 -c "{target}.write({source}.read())"'
    wanted = "" if path.suffix.lower() == ".csv" else ", delimiter='\\t'"
    rows = f"csv.reader({source}, delimiter={delimiter!r})"
    return f'python3 -c "import csv; csv.writer({target}{wanted}).writerows({rows})"'
