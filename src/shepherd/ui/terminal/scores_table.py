"""Print benchmark tasks and refusals of a run folder's arms, and the verdict of its gate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TextIO

from rich import box
from rich.table import Table

from shepherd.evaluate.how import words
from shepherd.ui.terminal.console import PlainConsole, styled

if TYPE_CHECKING:
    from shepherd.run.release import Release

Row = Mapping[str, Any]
BASE, FEDERATED = "base", "federated"
MAX_ARM_COLUMNS = 6
"""More arms than this do not fit a terminal side by side; then base and federated are shown."""
FORMAT_NOTE = (
    "FlowerTune's formats ask for an answer of a fixed form: of a small model they measure whether it writes"
    " that form, and choices scored by likelihood what it knows."
)


def print_scores(scores: Sequence[Row], release: Release, stream: TextIO | None = None) -> None:
    """Print each score of each arm with its 95% interval, and the federated arm's difference from the base.

    The sentences that say in words what the table shows are left to the report.

    Args:
        scores: rows of evaluation.json.
        release: verdict of the run's gate, whose sentence comes last.
    """
    console = PlainConsole(stream)
    if scores:
        console.print_table(_table(scores))
    if any(row["kind"] == "format" for row in scores):
        console.print(styled(f"- {FORMAT_NOTE}"), soft_wrap=True)
    if verdict := release.sentence():
        console.print(styled(verdict), soft_wrap=True)


def _table(scores: Sequence[Row]) -> Table:
    arms = list(dict.fromkeys(arm for row in scores for arm in row["arms"]))
    if len(arms) > MAX_ARM_COLUMNS:
        arms = [arm for arm in arms if arm in (BASE, FEDERATED)]
    title = "Benchmarks and refusals; 95% intervals below each number"
    table = Table(box=box.SIMPLE, title=title, title_justify="left", padding=(0, 1, 0, 0))
    table.add_column("score", overflow="fold", min_width=12)
    table.add_column("n", justify="right", no_wrap=True)
    for arm in arms:
        table.add_column(styled(arm), justify="right", overflow="fold")
    table.add_column("federated\n- base", justify="right", no_wrap=True)
    for row in scores:
        table.add_row(
            styled("\n".join(filter(None, (f"{row['label']}{' %' if row['share'] else ''}", words(row))))),
            f"{row['documents']:,}",
            *(_interval(row, row["arms"].get(arm)) for arm in arms),
            _interval(row, row["differences"].get(FEDERATED)),
        )
    return table


def _interval(row: Row, found: Row | None) -> str:
    """A number, and on the next line its 95% interval."""
    if found is None or found["value"] is None:
        return "-"
    factor, places = (100, 1) if row["share"] else (1, 3)
    bounds = (found["low"], found["high"])
    number = f"{factor * found['value']:.{places}f}"
    if None in bounds:
        return number
    return f"{number}\n{' to '.join(f'{factor * bound:.{places}f}' for bound in bounds)}"
