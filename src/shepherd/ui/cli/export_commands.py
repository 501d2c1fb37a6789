"""`shepherd export`, `push` and `plugins`: an adapter for others, and what a run file can choose."""

from __future__ import annotations

from pathlib import Path

import click

from shepherd.errors import HubError
from shepherd.ui.cli.options import overrides, run_folder
from shepherd.ui.cli.silos import agreed, echo, into, plugin, trust

results_option = click.option(
    "--results",
    multiple=True,
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="What `shepherd evaluate --json` printed, for the model card; repeatable.",
)


unreleased_option = click.option(
    "--unreleased",
    is_flag=True,
    help="Write it although the run's gate speaks against it; the card says so.",
)


form = click.option(
    "--to",
    default="peft",
    show_default=True,
    metavar="FORM",
    help="Exporter; `shepherd plugins exporters` lists them.",
)
of_round = click.option(
    "--round", type=click.IntRange(min=1), help="Round of a kept checkpoint.  [default: the last]"
)
of_client = click.option(
    "--client", metavar="NAME", help="Client whose own model is written, where each has one."
)


@click.command(short_help="Write a run's adapter for other programs.")
@run_folder
@overrides
@form
@into
@of_round
@of_client
@results_option
@unreleased_option
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
    unreleased: bool,
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
        folder,
        output,
        to,
        overrides,
        round=round,
        client=client,
        results=results,
        unreleased=unreleased,
        consent=consent,
    )
    echo(f"wrote {output}")
    if serve:
        echo(f"to use it: {serve}")


@click.command(short_help="Publish a run's adapter on the Hugging Face hub.")
@run_folder
@click.argument("repo", metavar="OWNER/NAME")
@overrides
@form
@click.option(
    "--base", default="", metavar="OWNER/NAME", help="The base's name on the hub, where it is a folder."
)
@click.option("--public", is_flag=True, help="Let anybody read it.  [default: private]")
@click.option("--update", is_flag=True, help="Commit over what the repository holds.")
@click.option("--yes", is_flag=True, help="Send it; without this it is only said what would be sent.")
@of_round
@of_client
@results_option
@unreleased_option
@trust
@plugin
def push(
    folder: Path,
    repo: str,
    overrides: tuple[str, ...],
    to: str,
    base: str,
    public: bool,
    update: bool,
    yes: bool,
    round: int | None,
    client: str | None,
    results: tuple[Path, ...],
    unreleased: bool,
    remote_code: bool,
    plugins: tuple[str, ...],
) -> None:
    """Publish the adapter of a run, with its model card, on the Hugging Face hub.

    What would be published is said first; --yes sends it. The access token is read from the environment
    variable HF_TOKEN.
    """
    from shepherd.run import publish

    with publish.prepared(
        folder,
        repo,
        to,
        overrides,
        public=public,
        base=base,
        round=round,
        client=client,
        results=results,
        unreleased=unreleased,
        consent=agreed(remote_code, plugins),
    ) as publication:
        for line in publication.lines():
            echo(line)
        if not yes:
            raise HubError("nothing was sent; add --yes to publish this")
        echo(f"published {publish.publish(publication, update=update)}")


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
