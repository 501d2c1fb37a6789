"""`shepherd data`: the data of a run file before any training."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from shepherd.errors import TemplateError
from shepherd.io.progress import many
from shepherd.ui.cli.options import overrides, run_file
from shepherd.ui.cli.silos import agreed, echo, plugin, trust, wished

if TYPE_CHECKING:
    from shepherd.data.pipeline import Partition
    from shepherd.settings import RunSettings


@click.group()
def data() -> None:
    """Look at the data of a run file before any training."""


@data.command()
@run_file
@overrides
@click.option("--samples", type=click.IntRange(min=0), default=1, show_default=True, help="Of each category.")
@trust
@plugin
def check(
    run_file: Path, overrides: tuple[str, ...], samples: int, remote_code: bool, plugins: tuple[str, ...]
) -> None:
    """Show examples with what is trained set off from what is masked, and the shares cut and dropped."""
    from shepherd.run.inspection import inspect_data
    from shepherd.settings import read
    from shepherd.ui.terminal.data import report

    settings = read(run_file, wished(overrides, remote_code))
    found = inspect_data(settings, samples=samples, consent=agreed(remote_code, plugins))
    report(found.report)
    _left_out(found.division, settings)
    if not found.report.counts.kept:
        raise TemplateError("no example is left to train on; change data.template or data.max_tokens")


@data.command()
@run_file
@overrides
@click.option("--plot", is_flag=False, flag_value="split.png", metavar="[FILE.png]", help="Draw it as well.")
@plugin
def split(run_file: Path, overrides: tuple[str, ...], plot: str | None, plugins: tuple[str, ...]) -> None:
    """Show which client holds how many examples of which category."""
    from shepherd.data.files import left_out
    from shepherd.data.pipeline import divide
    from shepherd.data.plot import draw, holdings
    from shepherd.settings import read
    from shepherd.ui.terminal.data import holdings as show

    settings = read(run_file, overrides)
    division = divide(settings, plugins)
    for name in left_out(settings.data.source):
        echo(f"{name} is left out: files that begin so are for testing")
    names, table = holdings(division.reading.examples, division.clients)
    show(names, list(division.clients), table.tolist())
    _left_out(division, settings)
    if plot:
        echo(f"drawn in {draw(division.reading.examples, division.clients, plot)}")


def _left_out(division: Partition, settings: RunSettings) -> None:
    from shepherd.data.pipeline import division_remarks

    held = division.held
    left = many(held.duplicates, "duplicate"), many(len(division.reading.skipped), "bad row")
    echo(
        f"{many(len(held.train), 'example')} to train on, {len(held.heldout)} held out,"
        f" {' and '.join(left)} left out"
    )
    for sentence in division_remarks(division, settings):
        echo(sentence)
