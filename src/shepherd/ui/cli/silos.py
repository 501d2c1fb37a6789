"""The commands `shepherd silos ...`: a federation over a network, for its coordinator and its sites."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

import click

from shepherd.consent import Consent
from shepherd.errors import SilosError
from shepherd.version import install
from shepherd.visible import shown

federation_folder = click.argument("folder", type=click.Path(path_type=Path), metavar="FOLDER")
admin_kit = click.argument("kit", type=click.Path(path_type=Path), metavar="ADMIN_KIT")

trust = click.option(
    "--trust-remote-code",
    "remote_code",
    is_flag=True,
    help="Run the code that comes with the base: read it first.",
)
plugin = click.option(
    "--allow-plugin",
    "plugins",
    multiple=True,
    metavar="NAME",
    help="Import this module from outside, which the run file names; once for each.",
)
tracker = click.option(
    "--allow-tracker",
    "trackers",
    multiple=True,
    type=click.Choice(["wandb", "mlflow"]),
    help="Send the run's figures to this service, which the run file names.",
)


def agreed(
    remote_code: bool = False,
    plugins: tuple[str, ...] = (),
    trackers: tuple[str, ...] = (),
    base_url: str | None = None,
    key_env: str | None = None,
) -> Consent:
    """What the person has said yes to by options."""
    return Consent(
        remote_code=remote_code,
        plugins=frozenset(plugins),
        trackers=frozenset(trackers),
        base_url=base_url,
        key_env=key_env,
    )


def wished(overrides: tuple[str, ...], remote_code: bool) -> tuple[str, ...]:
    """The overrides, and what an option wishes for besides."""
    return (*overrides, "model.trust_remote_code=true") if remote_code else overrides


def echo(text: object) -> None:
    """Print a sentence, whoever's words are in it; it is dropped if nobody reads it any more."""
    try:
        click.echo(shown(text))
    except OSError as error:
        if not _dropped(error):
            raise


def _dropped(error: OSError) -> bool:
    from shepherd.ui.terminal.console import dropped  # brings rich

    return dropped(error, sys.stdout)


@click.group()
@click.pass_context
def silos(context: click.Context) -> None:
    """A federation over a network, on NVIDIA FLARE: the server, the sites, and who may do what.

    The guide is docs/silos.md.
    """
    if context.invoked_subcommand != "check":  # which an owner may ask before anything is installed
        require_flare()


def require_flare() -> None:
    """Raise SilosError unless FLARE is installed."""
    from importlib.util import find_spec

    if find_spec("nvflare") is None:
        raise SilosError(f"NVIDIA FLARE is not installed; install it with: {install('silos')}")


@silos.command()
@federation_folder
@click.option(
    "--server", required=True, metavar="HOST[:PORT]", help="As sites reach it.  [default port: 8002]"
)
@click.option("--site", "sites", multiple=True, required=True, metavar="NAME", help="Once for each site.")
@click.option(
    "--admin",
    "admins",
    multiple=True,
    default=("admin",),
    show_default=True,
    metavar="NAME[:ROLE]",
    help="project_admin (also removes members), lead (runs), org_admin or member (look on).",
)
def create(folder: Path, server: str, sites: tuple[str, ...], admins: tuple[str, ...]) -> None:
    """Make the certificates and kits of a federation, and say which kit goes to whom."""
    from shepherd.silos.flare import provision

    for sentence in provision.create(folder, server, sites, admins).sentences:
        echo(sentence)


@silos.command("add-site")
@federation_folder
@click.argument("name")
def add_site(folder: Path, name: str) -> None:
    """Make the kit of one more site."""
    from shepherd.silos.flare import provision

    for sentence in provision.add_site(folder, name).sentences:
        echo(sentence)


@silos.command("remove-site")
@federation_folder
@click.argument("name")
@click.option(
    "--kit", type=click.Path(path_type=Path), metavar="ADMIN_KIT", help="[default: the first in FOLDER]"
)
def remove_site(folder: Path, name: str, kit: Path | None) -> None:
    """Throw a site out at once, and let it in no more."""
    from shepherd.silos.coordinator.admin import remove

    for sentence in remove(folder, name, kit):
        echo(sentence)


@silos.command("remove-admin")
@federation_folder
@click.argument("name")
@click.option(
    "--kit", type=click.Path(path_type=Path), metavar="ADMIN_KIT", help="[default: the first in FOLDER]"
)
@click.option("--stop-runs", is_flag=True, help="Also stop the runs that NAME has submitted.")
def remove_admin(folder: Path, name: str, kit: Path | None, stop_runs: bool) -> None:
    """Shut an administrator out at once, say which runs are theirs, and let them in no more."""
    from shepherd.silos.coordinator import admin

    for sentence in admin.remove_admin(folder, name, kit, stop_runs=stop_runs):
        echo(sentence)


@silos.command()
@federation_folder
@click.option("--delete", "doomed", multiple=True, metavar="ID", help="Delete this run; once for each.")
@click.option(
    "--older-than", "days", type=float, metavar="DAYS", help="Delete the runs that are idle so long."
)
@click.option("--yes", is_flag=True, help="Delete without asking.")
def runs(folder: Path, doomed: tuple[str, ...], days: float | None, yes: bool) -> None:
    """List what the server keeps of its runs, on its own machine, and delete old ones.

    FOLDER is what `create` made, or the server's own kit. A run under way is never deleted.
    """
    from shepherd.silos.server import kept_runs
    from shepherd.ui.terminal.federation_tables import print_kept_runs

    found = kept_runs.kept(folder)
    if days is None and not doomed:
        print_kept_runs(found)
        return
    named = sorted({*doomed, *(kept_runs.older(found, days) if days is not None else ())})
    if not named:
        echo("no run is as old as that")
        return
    print_kept_runs([run for run in found if run.run in named])
    if not yes:
        click.confirm("Delete what the server keeps of these runs, for good?", abort=True)
    freed = kept_runs.delete(folder, named)
    echo(f"deleted {', '.join(named)}: {freed / 1e6:,.1f} MB are free again")


@silos.command()
@federation_folder
def server(folder: Path) -> None:
    """Run and supervise the server; FOLDER is what `create` made, or the server's own kit."""
    from shepherd.silos.server.serve import serve

    serve(folder, echo)


@silos.command()
@click.argument("kit", type=click.Path(path_type=Path), metavar="SITE_KIT")
@click.option(
    "--config", type=click.Path(path_type=Path), required=True, metavar="site.toml", help="The owner's own."
)
def site(kit: Path, config: Path) -> None:
    """Run and supervise a site: its connection to the server, and its trainer."""
    from shepherd.silos.site.serve import join

    join(kit, config, echo)


@silos.command()
@click.argument("file", type=click.Path(path_type=Path), default=Path("site.toml"), metavar="[site.toml]")
@click.option("--new", is_flag=True, help="Write a commented site.toml to begin with.")
@click.option(
    "--run", "run_file", type=click.Path(path_type=Path), metavar="RUN.toml", help="A run to check against."
)
def check(file: Path, new: bool, run_file: Path | None) -> None:
    """Show a site's owner what would be trained on, and what would leave; joins nothing."""
    from shepherd.silos.site import site_settings as settings

    if new:
        settings.write_example(file)
        echo(f"wrote {file}; next: shepherd silos check {file}")
        return
    from shepherd.overrides import read
    from shepherd.silos.site.preview import check as checked
    from shepherd.ui.terminal.site_preview import print_preview

    if not print_preview(checked(file, read(run_file) if run_file else None)):
        raise click.exceptions.Exit(2)


@silos.command()
@admin_kit
def status(kit: Path) -> None:
    """Show which sites are connected, and what runs."""
    from shepherd.silos.coordinator.admin import status as seen
    from shepherd.ui.terminal.federation_tables import print_status

    print_status(seen(kit))


@silos.command()
@click.argument("folder", type=click.Path(path_type=Path), metavar="RUN_FOLDER")
@click.option(
    "--silos", "kit", type=click.Path(path_type=Path), metavar="ADMIN_KIT", help="[default: the run's own]"
)
def stop(folder: Path, kit: Path | None) -> None:
    """Stop a run at the server and its sites; its finished rounds are kept, and `resume` goes on."""
    from shepherd.silos.coordinator.admin import stop as stopped

    echo(stopped(folder, kit))


@silos.command()
@click.argument("folder", type=click.Path(path_type=Path), metavar="RUN_FOLDER")
@click.option(
    "--silos", "kit", type=click.Path(path_type=Path), metavar="ADMIN_KIT", help="[default: the run's own]"
)
def anew(folder: Path, kit: Path | None) -> None:
    """Have sites go on with a run whose server has lost rounds that they have answered.

    `resume` then goes on from the copy in the run folder, and each site begins its data from the front.
    """
    from shepherd.silos.coordinator.admin import anew as named_anew

    echo(named_anew(folder, kit))


@silos.command()
@click.argument("run_file", type=click.Path(path_type=Path), metavar="RUN.toml")
@click.argument("overrides", nargs=-1, metavar="[key=value ...]")
@click.option(
    "--folder",
    type=click.Path(path_type=Path),
    required=True,
    help="For kits, data and logs.",
)
@trust
@plugin
@tracker
def demo(
    run_file: Path,
    overrides: tuple[str, ...],
    folder: Path,
    remote_code: bool,
    plugins: tuple[str, ...],
    trackers: tuple[str, ...],
) -> None:
    """Try it: server and sites on this machine, each with one client's share of the run file's data."""
    from shepherd.overrides import read
    from shepherd.run.folder import require_free

    settings = read(run_file, wished(overrides, remote_code))
    require_free(settings.output)
    require_free(folder)
    consent = agreed(remote_code, plugins, trackers)
    from shepherd.silos import loopback
    from shepherd.silos.coordinator import coordinate
    from shepherd.ui.terminal.train import train

    sites = loopback.write_sites(settings, folder / "sites", consent=consent)
    try:
        with loopback.running(folder / "federation", sites) as made:
            echo(f"server and {len(sites)} sites run on this machine; their logs: {folder}/federation/logs")
            opened = partial(coordinate.open_run, settings, made.admin, consent=consent)
            train(opened, Path(settings.output))
    except KeyboardInterrupt:
        raise KeyboardInterrupt("stopped, and with it the server and the sites of the demo") from None
    echo(f"kits: {folder}/federation   sites' data, site.toml and audit: {folder}/sites, KIT/shepherd")
