"""`shepherd privacy`: what a run will spend of somebody's privacy."""

from __future__ import annotations

from pathlib import Path

import click

from shepherd.ui.cli.options import overrides, run_file
from shepherd.ui.cli.silos import agreed, echo, plugin


@click.group()
def privacy() -> None:
    """Plan what a run may give away of a client, or of an example."""


@privacy.command()
@run_file
@overrides
@click.option("--epsilon", type=float, metavar="E", help="Also find the noise that spends at most this.")
@click.option(
    "--clients", type=click.IntRange(min=1), help="Number of clients.  [default: by the run file or its data]"
)
@click.option(
    "--examples",
    type=click.IntRange(min=1),
    multiple=True,
    metavar="N",
    help="Examples of a client, with [privacy.examples]; may be repeated.  [default: by the data]",
)
@plugin
@click.pass_context
def plan(
    context: click.Context,
    run_file: Path,
    overrides: tuple[str, ...],
    epsilon: float | None,
    clients: int | None,
    examples: tuple[int, ...],
    plugins: tuple[str, ...],
) -> None:
    """Show the epsilon that the planned rounds spend, and what it means.

    Of clients, where a transform adds noise, and of their examples, with [privacy.examples]. The exit code is
    1 if it is above privacy.epsilon, or if there is none.

    Any key can be overridden: federation.rounds=200 selection.share=0.05
    """
    from shepherd.overrides import read
    from shepherd.run import privacy_plan

    found = privacy_plan.plan(
        read(run_file, overrides),
        epsilon=epsilon,
        clients=clients,
        examples=examples,
        consent=agreed(plugins=plugins),
    )
    for sentence in found.sentences():
        echo(sentence)
    if not found.fits:
        context.exit(1)
