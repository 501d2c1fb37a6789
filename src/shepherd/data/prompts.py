"""Prompts for a run: a text, a row in the run's own layout, or a file of either."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from shepherd.data import files, packed
from shepherd.data.examples import Turn
from shepherd.data.fields import alike, filled, is_filled
from shepherd.data.folding import shows_nothing
from shepherd.data.layouts import asked_of
from shepherd.errors import BadRow, DataError
from shepherd.io import lfs
from shepherd.io.decoding import decoded
from shepherd.io.phrases import listed
from shepherd.io.progress import many
from shepherd.settings import DataTable, FieldsTable
from shepherd.visible import shown_line

STDIN = "-"
NO_PROMPT = "the instruction is empty; write the question or task to answer"


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Prompt:
    """Turns of a chat that end with the user's; `where` is the file and line, for messages."""

    turns: tuple[Turn, ...]
    where: str = "the prompt"
    unread: tuple[str, ...] = ()
    """Fields of its row that are filled and not read."""

    def __repr__(self) -> str:
        """The place and the number of turns: the text of a prompt stays out of logs."""
        return f"<Prompt: {self.where}, {len(self.turns)} turns>"

    @property
    def text(self) -> str:
        """Text of the last turn, without its context."""
        return self.turns[-1].text

    @property
    def context(self) -> str:
        """Context of the last turn."""
        return self.turns[-1].context


def prompt_of(asked: str | Mapping[str, Any], table: DataTable, where: str = "the prompt") -> Prompt:
    """Make a prompt of a text, or of a row with the run's fields or the usual ones.

    The usual fields are `instruction`, `context` and `messages`.

    Raises:
        DataError: a text is empty.
        BadRow: a row lacks its instruction, or a field is no text.
    """
    if not isinstance(asked, str):
        names = table.fields
        own = bool(alike(asked, (names.instruction,)) or filled(asked, (names.messages,)))
        usual = bool(alike(asked, ("instruction", "messages", "conversations"))) or not names.instruction
        if usual and not own:
            table = table.model_copy(update={"fields": FieldsTable()})
        found = asked_of(asked, table, where)
        unread = tuple(
            str(name) for name, value in asked.items() if name not in found.used and is_filled(value)
        )
        return Prompt(turns=found.turns, where=where, unread=(*unread, *found.unread))
    if shows_nothing(asked):
        raise DataError(NO_PROMPT if where == "the prompt" else f"{where}: {NO_PROMPT}")
    return Prompt(turns=(Turn(role="user", text=asked),), where=where)


def with_context(asked: Prompt, context: str) -> Prompt:
    """The prompt with `context` as the context of its last turn."""
    *others, last = asked.turns
    return replace(asked, turns=(*others, replace(last, context=context)))


def read(source: str, table: DataTable) -> list[Prompt]:
    """Read the prompts of a file, or of standard input for "-".

    JSON, JSONL, CSV, TSV and Parquet files have rows as in `prompt_of`; any other file has one text a line.
    Standard input is JSONL if its first line begins with "{", else one text a line.

    Raises:
        DataError: the file is missing, unreadable, no text, or empty; or a row is (by file and line).
    """
    suffix = packed.suffix(Path(source))
    placed = files.rows_of(Path(source).expanduser()) if suffix in files.READERS else _lines(source)
    found = []
    for where, row in placed:
        if isinstance(row, BadRow):
            raise row
        found.append(prompt_of(row if isinstance(row, str) else _row(row, where), table, where))
    if not found:
        raise DataError(f"{_source_name(source)} has no prompt; write one a line")
    return found


def remarks(asked: Sequence[Prompt]) -> list[str]:
    """A sentence on the fields of the prompts that are filled and not read, if there are any."""
    fields = Counter(name for prompt in asked for name in prompt.unread)
    if not fields:
        return []
    named = [f"{shown_line(name[:60])} (in {many(rows, 'prompt')})" for name, rows in fields.items()]
    return [f"filled and not read: {listed(named, 12)}; to read a field, name it in data.fields of the run"]


def _row(row: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(row, Mapping):
        raise BadRow(f'{where} is no object with named fields; write it as {{"instruction": "..."}}')
    return row


def _source_name(source: str) -> str:
    return "standard input" if source == STDIN else source


def _lines(source: str) -> Iterator[tuple[str, Any]]:
    """Lines that are not blank, each with its place."""
    name = _source_name(source)
    if source != STDIN and (fault := lfs.fault(Path(source).expanduser())):
        raise DataError(fault)
    try:
        raw = sys.stdin.buffer.read() if source == STDIN else packed.read(Path(source).expanduser())
    except OSError as error:
        raise DataError(
            f"{name} cannot be read ({error.strerror}); name a file with one prompt a line"
        ) from error
    try:
        text = decoded(raw)
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise DataError(f"{name}, line {line} is not text in UTF-8; give a text file or JSONL") from error
    if "\0" in text:
        raise DataError(f"{name} is not a text file; give one prompt a line, or JSONL")
    rows = source == STDIN and text.lstrip().startswith("{")
    for number, line in enumerate(text.replace("\r\n", "\n").split("\n"), 1):
        where = f"{name}, line {number}"
        if line.strip():
            yield where, _parsed(line, where) if rows else line.strip()


def _parsed(line: str, where: str) -> Any:
    try:
        return json.loads(line)
    except ValueError as error:
        return BadRow(f"{where} is not JSON ({error}); fix that line")
