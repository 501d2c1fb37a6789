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
    help="Write it although a run's gate speaks against it; the card says so.",
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
public_base = click.option(
    "--base", default="", metavar="OWNER/NAME", help="The base's name on the hub, where it is a folder."
)


@click.command(short_help="Write a run's adapter for other programs.")
@run_folder
@overrides
@form
@into
@public_base
@of_round
@of_client
@click.option("--all-clients", is_flag=True, help="Write each client's own model, in a folder of its name.")
@results_option
@unreleased_option
@trust
@plugin
def export(
    folder: Path,
    overrides: tuple[str, ...],
    to: str,
    output: Path,
    base: str,
    round: int | None,
    client: str | None,
    all_clients: bool,
    results: tuple[Path, ...],
    unreleased: bool,
    remote_code: bool,
    plugins: tuple[str, ...],
) -> None:
    """Write the adapter of a run for other programs, with its model card.

    In PEFT's layout, merged into its base, as GGUF for llama.cpp, or with a Modelfile for Ollama. Keys are
    those of the exporter: dtype=float16
    """
    if all_clients and (client is not None or results):
        raise click.UsageError("--all-clients writes every client's model; leave out --client and --results")
    from shepherd.run.export import export as write
    from shepherd.run.export import export_clients

    consent = agreed(remote_code, plugins)
    if all_clients:
        places = export_clients(
            folder, output, to, overrides, base=base, round=round, unreleased=unreleased, consent=consent
        )
        for place in places.values():
            echo(f"wrote {place}")
        return
    serve = write(
        folder,
        output,
        to,
        overrides,
        base=base,
        round=round,
        client=client,
        results=results,
        unreleased=unreleased,
        consent=consent,
    )
    echo(f"wrote {output}")
    if serve:
        echo(f"to use it: {serve}")


@click.command(short_help="Combine several adapters into one.")
@click.argument(
    "adapters", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="ADAPTER [ADAPTER ...]"
)
@into
@click.option(
    "--how",
    type=click.Choice(["product", "linear", "ties"]),
    default="product",
    show_default=True,
    help="Sum the products, exactly; or mix the factors as PEFT does.",
)
@click.option(
    "--weight",
    "weights",
    multiple=True,
    type=float,
    help="Weight of an adapter, once for each.  [default: equal ones that sum to 1]",
)
@click.option(
    "--rank",
    type=click.IntRange(min=1),
    help="Rank of the result, for `product`.  [default: the sum of the ranks]",
)
@click.option(
    "--density",
    type=click.FloatRange(0, 1, min_open=True),
    help="Share of the numbers to keep, for `ties`.  [default: 0.5]",
)
@click.option(
    "--base", metavar="BASE", help="Their base, where no ADAPTER is a run: a folder, or OWNER/NAME."
)
@unreleased_option
@trust
def merge(
    adapters: tuple[Path, ...],
    output: Path,
    how: str,
    weights: tuple[float, ...],
    rank: int | None,
    density: float | None,
    base: str | None,
    unreleased: bool,
    remote_code: bool,
) -> None:
    """Combine the adapters of runs, arms or PEFT folders into one PEFT folder.

    `product` adds whole changes of the model. `linear` and `ties` mix A with A and B with B, which is not the
    same. One ADAPTER alone with --rank is cut to that rank. To compare: shepherd compare RUN FOLDER
    """
    from shepherd.run.mix import mix

    consent = agreed(remote_code)
    written = mix(
        adapters,
        output,
        how,
        weights=weights,
        rank=rank,
        density=density,
        base=base,
        unreleased=unreleased,
        consent=consent,
    )
    echo(f"wrote {written}")


@click.command(short_help="Publish a run's adapter on the Hugging Face hub.")
@run_folder
@click.argument("repo", metavar="OWNER/NAME")
@overrides
@form
@public_base
@click.option("--public", is_flag=True, help="Let anybody read it.  [default: private]")
@click.option(
    "--update",
    is_flag=True,
    help="Commit over what the repository holds; files of an earlier push that are not replaced go.",
)
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
        update=update,
        sends=yes,
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
        echo(f"published {publish.publish(publication)}")
        if publication.use:
            echo(f"to use it: {publication.use}")


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
