"""Print a judge's verdicts: the sums of the FedIT paper, or win rates, each number with its interval."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TextIO

from rich import box
from rich.table import Table

from shepherd.ui.terminal.console import PlainConsole, styled

Row = Mapping[str, Any]


def print_verdicts(judge: Row, stream: TextIO | None = None) -> None:
    """Print the judge's part of a comparison: `Result.row()`, or `judge` of comparison.json."""
    console = PlainConsole(stream)
    rows = judge["rows"]
    if rows:
        console.print_table(
            _fedit_table(judge, rows) if judge["protocol"] == "fedit" else _pairwise_table(judge, rows)
        )
    if len(judge.get("strengths", ())) > 2:
        console.print_table(_strength_table(judge["strengths"]))
    for sentence in judge["says"]:
        console.print(sentence, soft_wrap=True)
    console.print(
        f"{judge['calls']:,} replies, {judge['tokens']:,} tokens, {judge['unreadable']:,} unreadable.",
    )


def _fedit_table(judge: Row, rows: list[Row]) -> Table:
    table = _empty_table(judge, "first", "sum", "second", "sum", "of", "second / first")
    for row in rows:
        table.add_row(
            row["first"],
            interval(row["sum_first"], 1),
            row["second"],
            interval(row["sum_second"], 1),
            f"{row['out_of']:,}",
            interval(row["relative"], 3),
        )
    return table


def _pairwise_table(judge: Row, rows: list[Row]) -> Table:
    table = _empty_table(judge, "first", "second", "win", "tie", "loss", "win rate %", "at equal length %")
    for row in rows:
        table.add_row(
            row["first"],
            row["second"],
            *(f"{row[name]:,}" for name in ("win", "tie", "loss")),
            interval(row["win_rate"], 1, 100),
            interval(row["length_controlled"], 1, 100),
        )
    return table


def _strength_table(rows: list[Row]) -> Table:
    table = Table(box=box.SIMPLE)
    table.add_column("arm", overflow="fold")
    table.add_column("Bradley-Terry,\nlog odds", justify="right", no_wrap=True)
    for row in rows:
        table.add_row(row["arm"], interval(row["strength"], 2))
    return table


def _empty_table(judge: Row, *columns: str) -> Table:
    title = f"Judged by {judge['model']} ({judge['protocol']}, {judge['questions']:,} questions)"
    table = Table(box=box.SIMPLE, title=styled(title), title_justify="left", padding=(0, 1, 0, 0))
    for name in columns:
        names = name in ("first", "second")
        table.add_column(name, justify="left" if names else "right", overflow="fold", no_wrap=not names)
    return table


def interval(row: Row, places: int, unit: float = 1.0) -> str:
    """A number and, on the next line, its 95% interval; "-" stands for a number that is not finite.

    >>> interval({"value": 1.1553, "low": 1.05, "high": None}, 3).split("\\n")
    ['1.155', '[1.050, -]']
    """
    value, low, high = (
        "-" if number is None else f"{unit * number:.{places}f}"
        for number in (row["value"], row["low"], row["high"])
    )
    return f"{value}\n[{low}, {high}]"
