"""`shepherd data`: inspect the data of a run file before any training."""

from __future__ import annotations

from pathlib import Path
from textwrap import shorten
from typing import TYPE_CHECKING

import click

from shepherd.errors import TemplateError
from shepherd.io.progress import many
from shepherd.ui.cli.options import overrides, run_file
from shepherd.ui.cli.silos import agreed, echo, plugin, trust, wished
from shepherd.visible import shown_line

if TYPE_CHECKING:
    from shepherd.data.dataset import Partition
    from shepherd.settings import RunSettings


@click.group()
def data() -> None:
    """Inspect the data of a run file before any training."""


@data.command(short_help="Show examples, with their trained part marked.")
@run_file
@overrides
@click.option(
    "--samples",
    type=click.IntRange(min=0),
    default=1,
    show_default=True,
    help="Examples to show of each category.",
)
@trust
@plugin
def check(
    run_file: Path, overrides: tuple[str, ...], samples: int, remote_code: bool, plugins: tuple[str, ...]
) -> None:
    """Show examples with their trained part marked, and what share is cut, dropped and masked."""
    from shepherd.data.pipeline import client_counts
    from shepherd.data.remarks import client_remarks
    from shepherd.overrides import read
    from shepherd.run.inspection import inspect_data
    from shepherd.ui.terminal.data_tables import print_lint_report

    for title, settings in _stages(read(run_file, wished(overrides, remote_code))):
        if title:
            echo(title)
        found = inspect_data(settings, samples=samples, consent=agreed(remote_code, plugins))
        print_lint_report(found.report)
        for sentence in client_remarks(client_counts(found.report.by_client, found.division.reading)):
            echo(sentence)
        _print_left_out(found.division, settings)
        if not found.report.counts.kept:
            raise TemplateError("no example is left to train on; change data.template or data.max_tokens")


@data.command()
@run_file
@overrides
@click.option(
    "--plot",
    is_flag=False,
    flag_value="split.png",
    metavar="[FILE.png]",
    help="Also draw the table as a picture.",
)
@plugin
def split(run_file: Path, overrides: tuple[str, ...], plot: str | None, plugins: tuple[str, ...]) -> None:
    """Show how many examples of each category each client holds."""
    from shepherd.data.pipeline import divide
    from shepherd.data.plot import draw, holdings
    from shepherd.overrides import read
    from shepherd.ui.terminal.data_tables import print_holdings

    for number, (title, settings) in enumerate(_stages(read(run_file, overrides)), 1):
        if title:
            echo(title)
        division = divide(settings, plugins)
        names, table = holdings(division.reading.examples, division.clients)
        print_holdings(names, list(division.clients), table.tolist())
        _print_left_out(division, settings)
        if plot:
            place = Path(plot).with_stem(f"{Path(plot).stem}-{number}") if title else Path(plot)
            echo(f"wrote {draw(division.reading.examples, division.clients, place)}")


def _stages(settings: RunSettings) -> list[tuple[str, RunSettings]]:
    """The settings of each stage with a title; of a run without stages, its own without one."""
    if not settings.stages:
        return [("", settings)]
    from shepherd.run.stages import settings_of  # brings torch

    names = [str(stage.get("name", "")) for stage in settings.stages]
    titles = [
        f"Stage {n} of {len(names)}" + (f": {shown_line(name)}" if name else "")
        for n, name in enumerate(names, 1)
    ]
    return list(zip(titles, settings_of(settings), strict=True))


def _print_left_out(division: Partition, settings: RunSettings) -> None:
    from shepherd.data.files import left_out
    from shepherd.data.remarks import division_remarks

    held = division.held
    left = many(held.duplicates, "duplicate"), many(len(division.reading.skipped), "bad row")
    echo(
        f"{many(len(held.train), 'example')} to train on, {len(held.heldout):,} held out,"
        f" {' and '.join(left)} left out"
    )
    for index, _ in held.repeats:
        twice = division.reading.examples[index]
        question, answer = (shorten(text, 60) for text in (twice.instruction, twice.response))
        echo(shown_line(f"  duplicate: {question} -> {answer}"))
    table = settings.data
    for sentence in (
        *left_out(table.source, table.config, table.part),
        *division_remarks(division, settings),
    ):
        echo(sentence)
