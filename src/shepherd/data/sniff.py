"""Detect the encoding and the delimiter of a file; where they are ambiguous, the error says what to set."""

from __future__ import annotations

import codecs
import csv
import re
import shlex
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from shepherd.data import packed
from shepherd.data.form import AUTO, USUAL, Form
from shepherd.errors import DataError
from shepherd.io.decoding import UTF8, encoding_of

HEAD_BYTES = 2**16
TEXT = (".csv", ".tsv", ".json", ".jsonl", ".ndjson", ".jsonlines", ".jl")
NAMES = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}
OTHER_STARTS = (
    (rb"PK\x03\x04", "a workbook of Excel or a zip archive"),
    (rb"\xd0\xcf\x11\xe0", "a workbook of an old or protected Excel"),
    (rb"PAR1", "Parquet"),
    (rb"ARROW1", "Arrow"),
    (rb"SQLite format", "a database of SQLite"),
    (rb"%PDF-", "PDF"),
    (rb"(?:\xef\xbb\xbf)?\s*<(?:!doctype html|html)", "a web page, as a download that failed leaves"),
)
"""How files begin that are often named like text files, and what they are."""
OTHER = re.compile(b"|".join(b"(" + start + b")" for start, _ in OTHER_STARTS), re.IGNORECASE)


def require_plain(path: Path, form: Form = USUAL) -> None:
    """Raise DataError where a text file is no text, or has an unknown encoding and none is given.

    The message has a command that converts the file. A file that cannot be opened is left to its reader.
    """
    if packed.suffix(path) in TEXT and path.is_file():
        encoding(path, form)


def text(path: Path, form: Form = USUAL) -> str:
    """The whole text of a file, without its byte order mark.

    Raises:
        DataError: the file is no text, or not in its encoding.
        OSError: the file cannot be read.
    """
    return packed.read(path).decode(encoding(path, form)).lstrip("\ufeff")


def encoding(path: Path, form: Form = USUAL) -> str:
    """Encoding of a file: the given one, or detected by its first bytes; the whole file decodes in it.

    Raises:
        DataError: the file is no text, or not in its encoding.
        OSError: the file cannot be read.
    """
    chosen = likely(path, form)
    decoder = codecs.getincrementaldecoder(chosen)()
    try:
        with packed.opened(path) as file:
            while piece := file.read(HEAD_BYTES):
                decoder.decode(piece)
            decoder.decode(b"", final=True)
    except UnicodeError as error:
        if form.encoding != AUTO:
            raise DataError(
                f"{path} is not in data.encoding {form.encoding} ({error}); set another"
            ) from error
        if chosen != UTF8:
            raise DataError(
                f"{path} is damaged: it begins as {chosen} but does not decode to its end; save it again"
            ) from None
        raise DataError(
            f'{path} is not UTF-8 but cp1252 or similar; set data.encoding = "cp1252", or convert it:'
            f" {_command(path, 'cp1252')}"
        ) from None
    return chosen


def likely(path: Path, form: Form = USUAL) -> str:
    """Probable encoding of a file, by its first bytes only.

    Raises:
        DataError: the file is no text.
        OSError: the file cannot be read.
    """
    with packed.opened(path) as file:
        head = file.read(HEAD_BYTES)
    if form.encoding != AUTO:
        return UTF8 if codecs.lookup(form.encoding).name == "utf-8" else form.encoding
    found = encoding_of(head)
    found_other = OTHER.match(head)
    other = OTHER_STARTS[found_other.lastindex - 1][1] if found_other and found_other.lastindex else ""
    if other or (found == UTF8 and b"\0" in head):
        kind = packed.suffix(path)[1:].upper() or "text"
        named = f"{kind} but {other}" if other else "text"
        raise DataError(f"{path} is not {named}, despite its name; export it as {kind}")
    return found


def delimiter(text: str, path: Path, form: Form) -> str:
    """Delimiter of a table: the given one, else the one that cuts its rows into equally many cells.

    Raises:
        DataError: several delimiters fit.
    """
    if form.delimiter != AUTO:
        return form.delimiter
    own = "\t" if packed.suffix(path) == ".tsv" else ","
    widths = {mark: _widths(text, mark) for mark in NAMES}
    expected = len(form.columns)
    cuts = [mark for mark, own_widths in widths.items() if _cuts(own_widths, expected)]
    if len(cuts) < 2:
        return cuts[0] if cuts else own
    even = [mark for mark in cuts if len(set(widths[mark])) == 1]
    if own in even or (own in cuts and not even):
        return own
    if len(even) == 1:
        return even[0]
    raise DataError(
        f"{path} may be separated by {' or by '.join(NAMES[mark] for mark in cuts)}; set data.delimiter"
    )


def _cuts(widths: Sequence[int], expected: int) -> bool:
    return bool(widths) and (widths[0] == expected if expected else widths[0] > 1)


def _widths(text: str, mark: str) -> list[int]:
    """Number of cells in each of the first rows that are not blank."""
    head = text[:HEAD_BYTES]
    try:
        with wide_cells():
            rows = [row for row in csv.reader(head.splitlines(keepends=True), delimiter=mark) if any(row)]
    except csv.Error:
        return []
    return [len(row) for row in (rows if len(head) == len(text) else rows[:-1] or rows)]


@contextmanager
def wide_cells() -> Iterator[None]:
    """Let the csv module read cells of any length."""
    before = csv.field_size_limit(2**31 - 1)  # the default refuses a cell over 131,072 characters
    try:
        yield
    finally:
        csv.field_size_limit(before)


def _command(path: Path, encoding: str) -> str:
    new = path.with_stem(path.stem + "-utf8")
    source = f"open({str(path)!r}, encoding={encoding!r}, newline='')"
    target = f"open({str(new)!r}, 'w', encoding='utf8', newline='')"
    return f"python3 -c {shlex.quote(f'{target}.write({source}.read())')}"
