"""`shepherd evaluate`: score a finished run on a file of examples."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import click

from shepherd.ui.cli.options import run_folder
from shepherd.ui.cli.silos import agreed, plugin, trust
from shepherd.visible import shown_json


@click.command()
@run_folder
@click.option(
    "--data",
    required=True,
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="File of rows with the fields of the run's data.",
)
@click.option(
    "--answers",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    help="Also answer this many of the examples, and measure the answers.",
)
@click.option("--round", type=click.IntRange(min=1), help="Round of a kept checkpoint.  [default: the last]")
@click.option(
    "--adapter",
    type=click.Path(path_type=Path),
    metavar="FOLDER",
    help="Score this PEFT folder of the same base in place of the run's adapter.",
)
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object instead of tables.")
@trust
@plugin
def evaluate(
    folder: Path,
    data: Path,
    answers: int,
    round: int | None,
    adapter: Path | None,
    as_json: bool,
    remote_code: bool,
    plugins: tuple[str, ...],
) -> None:
    """Score a run and its base on the examples of a file.

    The result goes to stdout, all else to stderr; nothing is written to disk.
    """
    from shepherd.run.folder import read_settings

    read_settings(folder)
    if adapter is not None and round is not None:
        raise click.UsageError("--round is of the run's own adapter; leave it out with --adapter")
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as for `generate`
    from shepherd.run.evaluation import evaluate_run  # torch takes seconds
    from shepherd.ui.terminal.evaluation_table import print_evaluation
    from shepherd.ui.terminal.running import plain_lines

    with plain_lines(sys.stderr):
        consent = agreed(remote_code, plugins)
        found = evaluate_run(folder, data, answers=answers, round=round, adapter=adapter, consent=consent)
    if as_json:
        print(shown_json(json.dumps(found.row(), ensure_ascii=False)))
    else:
        print_evaluation(found)
