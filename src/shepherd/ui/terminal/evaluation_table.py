"""Print how a run scores on a file of examples."""

from __future__ import annotations

from typing import TYPE_CHECKING, TextIO

from rich import box
from rich.table import Table

from shepherd.ui.terminal.console import PlainConsole, styled

if TYPE_CHECKING:  # torch is not for `--help`
    from shepherd.evaluate.sentences import Measure
    from shepherd.evaluate.statistics import Interval
    from shepherd.run.evaluation import Evaluation


def print_evaluation(found: Evaluation, stream: TextIO | None = None) -> None:
    """Print each measure of base and run with its interval, the loss by category, and what it means."""
    console = PlainConsole(stream)
    title = f"{found.folder} on {found.data} ({found.examples:,} examples)"
    table = _table(title, "measure", "base", "run", "difference")
    for each in found.scored:
        table.add_row(
            styled(each.measure.label),
            _interval(each.base, each.measure),
            _interval(each.run, each.measure),
            _interval(each.difference.difference, each.measure),
        )
    console.print(table)
    if len(found.categories) > 1:
        table = _table("Loss by category, in nats a token", "category", "examples", "base", "run")
        for name, row in found.categories.items():
            table.add_row(styled(name), f"{row['examples']:,}", *(f"{row[of]:.3f}" for of in ("base", "run")))
        console.print(table)
    for sentence in (*(each.sentence() for each in found.scored), *found.remarks):
        console.print(styled(f"{sentence[0].upper()}{sentence[1:]}"), soft_wrap=True)


def _table(title: str, *columns: str) -> Table:
    table = Table(box=box.SIMPLE, title=styled(title), title_justify="left", padding=(0, 1, 0, 0))
    for place, name in enumerate(columns):
        table.add_column(name, justify="right" if place else "left", overflow="fold", no_wrap=bool(place))
    return table


def _interval(interval: Interval, measure: Measure) -> str:
    """A number, and on the next line its 95% interval."""
    low, high = measure.number(interval.low), measure.number(interval.high)
    return f"{measure.number(interval.value)}\n[{low}, {high}]"
