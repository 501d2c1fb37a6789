"""Print what a run is expected to take, and after it what it took."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from typing import TYPE_CHECKING, TextIO

from rich import box
from rich.table import Table

from shepherd.io.phrases import data_size
from shepherd.io.progress import duration, many, roughly
from shepherd.run.measured import Figure
from shepherd.ui.terminal.console import PlainConsole, styled

if TYPE_CHECKING:
    from shepherd.machine.estimate import Memory
    from shepherd.run.disk import Disk
    from shepherd.run.forecast import Forecast

WORDS = {
    "process": "Python, PyTorch and the data",
    "base": "weights of the base",
    "adapters": "adapters being tuned",
    "optimiser": "their gradients and moments",
    "activations": "activations of a pass",
    "server": "server",
    "data": "tokens and held-out examples",
    "checkpoints": "checkpoints",
    "memories": "what clients remember",
    "adapter": "final adapter",
    "log": "log",
}


def print_forecast(found: Forecast, stream: TextIO | None = None) -> None:
    """Print memory, time, bytes and disk of a run, and what to change where it does not fit."""
    console = PlainConsole(stream)
    plan = found.plan
    console.print(
        f"{found.parameters:,} parameters in {plan.dtype} on {plan.device}, {found.trained:,} to train;"
        f" {many(found.examples, 'example')} of about {found.tokens / found.examples:.0f} tokens,"
        f" {many(found.clients, 'client')}, {found.cohort:.4g} a round",
        soft_wrap=True,
    )
    workers = (
        f"{many(plan.workers, 'actor')} of Ray on {many(found.nodes, 'node')} like this machine"
        if found.nodes
        else f"{plan.workers} process{'' if plan.workers == 1 else 'es'}"
    )
    console.print(
        f"{workers},"
        f" {many(plan.stack_size, 'client')} in a pass of at most {plan.micro_batch_tokens:,} tokens"
        + (f" (measured on {found.probe})" if found.probe else ""),
        soft_wrap=True,
    )
    console.print_table(_sizes("memory", found.memory, found.available_bytes))
    console.print_table(_sizes("disk", found.disk, found.free_disk_bytes))
    console.print(
        f"A round: {_time(found)}{data_size(found.bytes_down)} down and {data_size(found.bytes_up)} up"
        f"{_whole_time(found)}.",
        soft_wrap=True,
    )
    console.print(styled("It fits." if found.fits else "It does not fit.", "bold"))
    for sentence in found.advice:
        console.print(sentence, soft_wrap=True)


def _time(found: Forecast) -> str:
    """The time of a round, if it was measured."""
    if found.seconds_a_round is None or found.tuning_seconds is None or found.scoring_seconds is None:
        return ""
    return (
        f"about {roughly(float(f'{found.seconds_a_round:.2g}'))} (tuning {duration(found.tuning_seconds)},"
        f" scoring {duration(found.scoring_seconds)} where it is scored), "
    )


def _whole_time(found: Forecast) -> str:
    if found.tuning_seconds is None or found.scoring_seconds is None:
        return ""
    whole = found.rounds * found.tuning_seconds + found.scored_rounds * found.scoring_seconds
    return f"; {many(found.rounds, 'round')}: about {roughly(float(f'{whole:.2g}'))}"


def _sizes(title: str, parts: Memory | Disk, available: int) -> Table:
    table = Table(box=box.SIMPLE, title=title.capitalize(), title_justify="left")
    table.add_column("for", overflow="fold")
    table.add_column("size", justify="right", no_wrap=True)
    for part in fields(parts):
        table.add_row(WORDS[part.name], data_size(getattr(parts, part.name)))
    table.add_section()
    table.add_row("together", data_size(parts.total), style="bold")
    table.add_row("available", data_size(available))
    return table


def print_measured(figures: Sequence[Figure], stream: TextIO | None = None) -> None:
    """Print the figures of a run that are both planned and measured; nothing where there is none."""
    known = [figure for figure in figures if figure.off is not None]
    if not known:
        return
    table = Table(box=box.SIMPLE, title="Planned and measured", title_justify="left")
    table.add_column("", overflow="fold")
    for name in ("planned", "measured", "off by"):
        table.add_column(name, justify="right", no_wrap=True)
    for figure in known:
        shown = duration if figure.unit == "seconds" else data_size
        planned, measured = shown(figure.planned or 0), shown(figure.measured or 0)
        table.add_row(figure.name, planned, measured, f"{figure.off:+.0%}")
    PlainConsole(stream).print_table(table)
