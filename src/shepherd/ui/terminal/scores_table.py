"""Print benchmark tasks and refusals of a run folder's arms, and the verdict of its gate.

Scores of the arms of a comparison are printed as it prints its own: an arm a line.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TextIO

from rich import box
from rich.table import Table

from shepherd.evaluate.how import How, words
from shepherd.io.progress import many
from shepherd.ui.terminal.console import PlainConsole, styled

if TYPE_CHECKING:
    from shepherd.run.release import Release

Row = Mapping[str, Any]
BASE, FEDERATED = "base", "federated"
MAX_ARM_COLUMNS = 6
"""More arms than this do not fit a terminal side by side; then base and federated are shown."""
MAX_SCORE_COLUMNS = 4
"""More scores than this do not fit a terminal side by side, below an arm's name."""
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
    _print_format_note(console, scores)
    print_release(release, stream)


def print_by_arm(
    scores: Sequence[Row], arms: Sequence[str], stream: TextIO | None = None, *, short: bool = False
) -> None:
    """Print the scores of a comparison's arms, an arm a line with 95% intervals, and what federation changes.

    Args:
        arms: names, in the comparison's order.
        short: whether to print the first metric of each task alone, in one table; the rest is in the report.
    """
    console = PlainConsole(stream)
    chosen = _first_metrics(scores)[:MAX_SCORE_COLUMNS] if short else list(scores)
    for place in range(0, len(chosen), MAX_SCORE_COLUMNS):
        console.print_table(_by_arm(chosen[place : place + MAX_SCORE_COLUMNS], arms))
    if left := len(scores) - len(chosen):
        console.print(f"- {many(left, 'further score')} {'is' if left == 1 else 'are'} in the report.")
    _print_format_note(console, chosen)


def print_release(release: Release, stream: TextIO | None = None) -> None:
    """Print the verdict of the run's gate, if it has one."""
    if verdict := release.sentence():
        PlainConsole(stream).print(styled(verdict), soft_wrap=True)


def _print_format_note(console: PlainConsole, scores: Sequence[Row]) -> None:
    if any(row["kind"] == "format" for row in scores):
        console.print(styled(f"- {FORMAT_NOTE}"), soft_wrap=True)


def _first_metrics(scores: Sequence[Row]) -> list[Row]:
    """The rows without further metrics of a task; one of all documents goes before one of some."""
    found: dict[str, Row] = {}
    for row in sorted(scores, key=lambda row: bool((how := How.of(row)) and how.limited)):
        found.setdefault(row["task"] if row["kind"] == "task" else row["name"], row)
    return list(found.values())


def _by_arm(scores: Sequence[Row], arms: Sequence[str]) -> Table:
    title = "Benchmarks and refusals; 95% intervals below each number"
    table = Table(box=box.SIMPLE, title=title, title_justify="left", padding=(0, 1, 0, 0))
    table.add_column("arm", overflow="fold", min_width=12)
    for row in scores:
        head = "\n".join(filter(None, (_label(row), words(row), f"n = {row['documents']:,}")))
        table.add_column(styled(head), justify="right", overflow="fold", min_width=12)
    for arm in arms:
        style = "bold" if arm == FEDERATED else ""
        table.add_row(styled(arm), *(_interval(row, row["arms"].get(arm)) for row in scores), style=style)
    differences = [_interval(row, row["differences"].get(FEDERATED)) for row in scores]
    table.add_row(f"{FEDERATED}\n- {BASE}", *differences)
    return table


def _label(row: Row) -> str:
    return f"{row['label']}{' %' if row['share'] else ''}"


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
            styled("\n".join(filter(None, (_label(row), words(row))))),
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
