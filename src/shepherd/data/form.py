"""How files are written, where a person says so."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Self

from shepherd.settings import DataTable

AUTO = "auto"


@dataclass(frozen=True, slots=True, kw_only=True)
class Form:
    """What a run file says of how its data files are written; by default all of it is found out."""

    delimiter: str = AUTO
    """Character between two cells of a CSV or TSV file."""
    encoding: str = AUTO
    columns: tuple[str, ...] = ()
    """Names of the columns of a table without a header."""
    sheet: str = AUTO
    """Name of a workbook's sheet."""
    part: str = "train"
    """Which of the tables in one JSON file holds the rows."""
    names: frozenset[str] = frozenset()
    """Fields that the run reads."""

    @classmethod
    def of(cls, table: DataTable) -> Self:
        """What the keys of [data] say."""
        fields: Iterable[str] = table.fields.model_dump().values()
        return cls(
            delimiter=table.delimiter,
            encoding=table.encoding,
            columns=table.columns,
            sheet=table.sheet,
            part=table.part,
            names=frozenset(fields) - {AUTO, ""},
        )


USUAL = Form()
