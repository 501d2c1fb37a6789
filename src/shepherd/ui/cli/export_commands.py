"""`shepherd export` and `plugins`: an adapter for other programs, and what a run file can choose."""

from __future__ import annotations

from pathlib import Path

import click

from shepherd.ui.cli.options import overrides, run_folder
from shepherd.ui.cli.silos import agreed, echo, into, plugin, trust

results_option = click.option(
    "--results",
    multiple=True,
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="What `shepherd evaluate --json` printed, for the model card; repeatable.",
)


@click.command(short_help="Write a run's adapter for other programs.")
@run_folder
@overrides
@click.option(
    "--to",
    default="peft",
    show_default=True,
    metavar="FORM",
    help="Exporter; `shepherd plugins exporters` lists them.",
)
@into
@click.option("--round", type=click.IntRange(min=1), help="Round of a kept checkpoint.  [default: the last]")
@click.option("--client", metavar="NAME", help="Client whose own model is written, where each has one.")
@results_option
@trust
@plugin
def export(
    folder: Path,
    overrides: tuple[str, ...],
    to: str,
    output: Path,
    round: int | None,
    client: str | None,
    results: tuple[Path, ...],
    remote_code: bool,
    plugins: tuple[str, ...],
) -> None:
    """Write the adapter of a run for other programs, with its model card.

    In PEFT's layout, merged into its base, as GGUF for llama.cpp, or with a Modelfile for Ollama. Keys are
    those of the exporter: dtype=float16
    """
    from shepherd.run.export import export as write

    consent = agreed(remote_code, plugins)
    serve = write(
        folder, output, to, overrides, round=round, client=client, results=results, consent=consent
    )
    echo(f"wrote {output}")
    if serve:
        echo(f"to use it: {serve}")


@click.command("plugins", short_help="List every plug-in, with its keys.")
@click.argument("kinds", nargs=-1, metavar="[KIND ...]")
@plugin
def list_plugins(kinds: tuple[str, ...], plugins: tuple[str, ...]) -> None:
    """List every plug-in that a run file can choose, with its keys: algorithms, splits and so on.

    Plug-ins of other packages are listed from their metadata and imported only with --allow-plugin.
    """
    from shepherd import catalogue

    for line in catalogue.lines(catalogue.kinds_named(kinds), plugins):
        echo(line)
