"""Options for reading data files, as a run file gives them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Self

from shepherd.settings import DataTable

AUTO = "auto"


@dataclass(frozen=True, slots=True, kw_only=True)
class Form:
    """Delimiter, encoding, columns and sheet of data files; by default they are detected."""

    delimiter: str = AUTO
    """Character between two cells of a CSV or TSV file."""
    encoding: str = AUTO
    columns: tuple[str, ...] = ()
    """Column names of a table without a header."""
    sheet: str = AUTO
    """Sheet of a workbook to read."""
    part: str = "train"
    """Key of the table to read, in a JSON file that holds several."""
    names: frozenset[str] = frozenset()
    """Fields that the run file names."""
    chats: frozenset[str] = frozenset()
    """Fields of these that hold chats."""

    @classmethod
    def of(cls, table: DataTable) -> Self:
        """The options that the keys of [data] give."""
        fields: Iterable[str] = table.fields.model_dump().values()
        return cls(
            delimiter=table.delimiter,
            encoding=table.encoding,
            columns=table.columns,
            sheet=table.sheet,
            part=table.part,
            names=frozenset(fields) - {AUTO, ""},
            chats=frozenset([table.fields.messages]) - {AUTO, ""},
        )


USUAL = Form()
