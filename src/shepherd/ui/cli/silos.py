"""The commands `shepherd silos ...`, for the coordinator, the server and the sites of a federation."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

import click

from shepherd.consent import Consent
from shepherd.errors import SilosError
from shepherd.version import install
from shepherd.visible import shown

WITHOUT_FLARE = ("check", "export")
"""Commands that read files of a site alone; an owner may check before FLARE is installed."""

federation_folder = click.argument("folder", type=click.Path(path_type=Path), metavar="FOLDER")
admin_kit = click.argument("kit", type=click.Path(path_type=Path), metavar="ADMIN_KIT")

trust = click.option(
    "--trust-remote-code",
    "remote_code",
    is_flag=True,
    help="Run the code that comes with the base; read it first.",
)
plugin = click.option(
    "--allow-plugin",
    "plugins",
    multiple=True,
    metavar="NAME",
    help="Import this module from outside the package, which the run file names; repeatable.",
)
into = click.option(
    "--output",
    "-o",
    type=click.Path(path_type=Path),
    required=True,
    metavar="FOLDER",
    help="Folder to write to, new or empty.",
)
tracker = click.option(
    "--allow-tracker",
    "trackers",
    multiple=True,
    type=click.Choice(["trackio", "wandb", "mlflow"]),
    help="Send the run's metrics to this service, which the run file names; repeatable.",
)
ray_cluster = click.option(
    "--ray",
    "ray_address",
    metavar="ADDRESS",
    help="Tune on this Ray cluster, HOST:PORT or auto, if the run file has [machine.ray].",
)


def agreed(
    remote_code: bool = False,
    plugins: tuple[str, ...] = (),
    trackers: tuple[str, ...] = (),
    base_url: str | None = None,
    key_env: str | None = None,
    *,
    ray_address: str | None = None,
    task_code: bool = False,
    hub: bool = False,
) -> Consent:
    """The consent that a person has given by options."""
    return Consent(
        remote_code=remote_code,
        plugins=frozenset(plugins),
        trackers=frozenset(trackers),
        base_url=base_url,
        key_env=key_env,
        task_code=task_code,
        hub=hub,
        ray_address=ray_address,
    )


def wished(overrides: tuple[str, ...], remote_code: bool) -> tuple[str, ...]:
    """The overrides, with the one that --trust-remote-code stands for."""
    return (*overrides, "model.trust_remote_code=true") if remote_code else overrides


def echo(text: object) -> None:
    """Print a sentence; text from outside in it is made safe, and it is dropped if nobody reads it."""
    try:
        click.echo(shown(text))
    except OSError as error:
        if not _dropped(error):
            raise


def _dropped(error: OSError) -> bool:
    from shepherd.ui.terminal.console import dropped  # brings rich

    return dropped(error, sys.stdout)


@click.group(short_help="Federations over a network, on NVIDIA FLARE.")
@click.pass_context
def silos(context: click.Context) -> None:
    """Federations over a network, on NVIDIA FLARE: create one, and run its server and sites.

    See docs/silos.md for a guide.
    """
    if context.invoked_subcommand not in WITHOUT_FLARE:
        require_flare()


def require_flare() -> None:
    """Raise SilosError unless FLARE is installed."""
    from importlib.util import find_spec

    if find_spec("nvflare") is None:
        raise SilosError(f"NVIDIA FLARE is not installed; install it with: {install('silos')}")


@silos.command(short_help="Create a federation: certificates and kits.")
@federation_folder
@click.option(
    "--server",
    required=True,
    metavar="HOST[:PORT]",
    help="Address at which the sites reach the server.  [default port: 8002]",
)
@click.option("--site", "sites", multiple=True, required=True, metavar="NAME", help="A site; repeatable.")
@click.option(
    "--admin",
    "admins",
    multiple=True,
    default=("admin",),
    show_default=True,
    metavar="NAME[:ROLE]",
    help="An administrator with a role: project_admin (runs, and removes members), lead (runs), org_admin or"
    " member (view only); repeatable.",
)
def create(folder: Path, server: str, sites: tuple[str, ...], admins: tuple[str, ...]) -> None:
    """Create the certificates and kits of a federation in FOLDER, and print who gets which kit."""
    from shepherd.silos.flare import provision

    for sentence in provision.create(folder, server, sites, admins).sentences:
        echo(sentence)


@silos.command("add-site")
@federation_folder
@click.argument("name")
def add_site(folder: Path, name: str) -> None:
    """Create the kit of another site, NAME."""
    from shepherd.silos.flare import provision

    for sentence in provision.add_site(folder, name).sentences:
        echo(sentence)


@silos.command("remove-site", short_help="Disconnect and refuse a site.")
@federation_folder
@click.argument("name")
@click.option(
    "--kit", type=click.Path(path_type=Path), metavar="ADMIN_KIT", help="[default: the first in FOLDER]"
)
def remove_site(folder: Path, name: str, kit: Path | None) -> None:
    """Disconnect the site NAME at once, and refuse it from now on."""
    from shepherd.silos.coordinator.admin import remove

    for sentence in remove(folder, name, kit):
        echo(sentence)


@silos.command("remove-admin", short_help="Disconnect and refuse an administrator.")
@federation_folder
@click.argument("name")
@click.option(
    "--kit", type=click.Path(path_type=Path), metavar="ADMIN_KIT", help="[default: the first in FOLDER]"
)
@click.option("--stop-runs", is_flag=True, help="Also stop the runs that NAME has submitted.")
def remove_admin(folder: Path, name: str, kit: Path | None, stop_runs: bool) -> None:
    """End the sessions of the administrator NAME, refuse the kit from now on, and list the submitted runs."""
    from shepherd.silos.coordinator import admin

    for sentence in admin.remove_admin(folder, name, kit, stop_runs=stop_runs):
        echo(sentence)


@silos.command(short_help="List or delete the runs that a server keeps.")
@federation_folder
@click.option("--delete", "doomed", multiple=True, metavar="ID", help="Delete this run; repeatable.")
@click.option(
    "--older-than",
    "days",
    type=float,
    metavar="DAYS",
    help="Delete the runs that have been idle for DAYS or more.",
)
@click.option("--yes", is_flag=True, help="Delete without asking.")
def runs(folder: Path, doomed: tuple[str, ...], days: float | None, yes: bool) -> None:
    """List the runs that the server keeps on its own machine, or delete old ones.

    FOLDER is the federation's folder from `create`, or the server's kit. A run under way is never deleted.
    """
    from shepherd.silos.server import kept_runs
    from shepherd.ui.terminal.federation_tables import print_kept_runs

    found = kept_runs.list_runs(folder)
    if days is None and not doomed:
        print_kept_runs(found)
        return
    named = sorted({*doomed, *(kept_runs.idle_runs(found, days) if days is not None else ())})
    if not named:
        echo("no run has been idle for that long")
        return
    print_kept_runs([run for run in found if run.run in named])
    if not yes:
        click.confirm("Delete these runs from the server permanently?", abort=True)
    freed = kept_runs.delete(folder, named)
    echo(f"deleted {', '.join(named)}: freed {freed / 1e6:,.1f} MB")


@silos.command(short_help="Run and supervise the server.")
@federation_folder
def server(folder: Path) -> None:
    """Run and supervise the server; FOLDER is the federation's folder from `create`, or the server's kit."""
    from shepherd.silos.server.serve import serve

    serve(folder, echo)


@silos.command(short_help="Run and supervise a site.")
@click.argument("kit", type=click.Path(path_type=Path), metavar="SITE_KIT")
@click.option(
    "--config",
    type=click.Path(path_type=Path),
    required=True,
    metavar="site.toml",
    help="What the site allows, written by its owner.",
)
def site(kit: Path, config: Path) -> None:
    """Run and supervise a site: its connection to the server, and its trainer."""
    from shepherd.silos.site.serve import join

    join(kit, config, echo)


@silos.command(short_help="Show what a site would train on and release.")
@click.argument("file", type=click.Path(path_type=Path), default=Path("site.toml"), metavar="[site.toml]")
@click.option("--new", is_flag=True, help="Write a commented site.toml to start from.")
@click.option(
    "--run",
    "run_file",
    type=click.Path(path_type=Path),
    metavar="RUN.toml",
    help="Run file to check against the policy.",
)
@click.option(
    "--kit",
    type=click.Path(path_type=Path),
    metavar="SITE_KIT",
    help="The site's kit, to show what is spent of its privacy budget.",
)
def check(file: Path, new: bool, run_file: Path | None, kit: Path | None) -> None:
    """Show a site's owner what would be trained on and what would be released; connects to nothing."""
    from shepherd.silos.site import site_settings as settings

    if new:
        settings.write_example(file)
        echo(f"wrote {file}; next: shepherd silos check {file}")
        return
    from shepherd.overrides import read
    from shepherd.silos.site.preview import check as checked
    from shepherd.ui.terminal.site_preview import print_preview

    if not print_preview(checked(file, read(run_file) if run_file else None, kit=kit)):
        raise click.exceptions.Exit(2)


@silos.command(short_help="Write a site's own model, where each site has one.")
@click.argument("kit", type=click.Path(path_type=Path), metavar="SITE_KIT")
@click.argument("keys", nargs=-1, metavar="[key=value ...]")
@click.option(
    "--config",
    type=click.Path(path_type=Path),
    required=True,
    metavar="site.toml",
    help="The site's file, which lists the base.",
)
@click.option(
    "--run", default="", metavar="ID", help="Run that the site took part in.  [default: the only one]"
)
@click.option("--to", default="peft", show_default=True, metavar="FORM", help="Exporter, as for `export`.")
@into
def export(kit: Path, keys: tuple[str, ...], config: Path, run: str, to: str, output: Path) -> None:
    """Write the model of a site's own, for its owner: of a run whose algorithm leaves a part with each site.

    It is made of files of this kit alone; connects to nothing.
    """
    from shepherd.silos.site import own_model, site_settings

    home = kit.absolute() / "shepherd"
    round = own_model.export(home, site_settings.read(config), output, to, keys, run)
    echo(f"wrote {output}: what this site keeps, with the common part as after {round} rounds")


@silos.command(short_help="Show connected sites and runs under way.")
@admin_kit
def status(kit: Path) -> None:
    """Show which sites are connected, and which runs are under way."""
    from shepherd.silos.coordinator.admin import status as seen
    from shepherd.ui.terminal.federation_tables import print_status

    print_status(seen(kit))


@silos.command(short_help="Stop a run at the server and its sites.")
@click.argument("folder", type=click.Path(path_type=Path), metavar="RUN_FOLDER")
@click.option(
    "--silos", "kit", type=click.Path(path_type=Path), metavar="ADMIN_KIT", help="[default: the run's own]"
)
def stop(folder: Path, kit: Path | None) -> None:
    """Stop a run at the server and its sites; finished rounds are kept, and `resume` continues it."""
    from shepherd.silos.coordinator.admin import stop as stopped

    echo(stopped(folder, kit))


@silos.command(short_help="Give a run a new id, so that sites repeat rounds.")
@click.argument("folder", type=click.Path(path_type=Path), metavar="RUN_FOLDER")
@click.option(
    "--silos", "kit", type=click.Path(path_type=Path), metavar="ADMIN_KIT", help="[default: the run's own]"
)
def new_id(folder: Path, kit: Path | None) -> None:
    """Give a run a new id, so that sites repeat rounds that the server has lost.

    `resume` then continues from the copy in the run folder, and each site starts its data from the beginning.
    """
    from shepherd.silos.coordinator.admin import new_id as give_new_id

    echo(give_new_id(folder, kit))


@silos.command(short_help="Try a federation on this machine alone.")
@click.argument("run_file", type=click.Path(path_type=Path), metavar="RUN.toml")
@click.argument("overrides", nargs=-1, metavar="[key=value ...]")
@click.option(
    "--folder",
    type=click.Path(path_type=Path),
    required=True,
    help="New folder for kits, data and logs.",
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
    """Run a server and sites on this machine, each site with one client's share of the run file's data."""
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
            echo(f"a server and {len(sites)} sites run on this machine; logs: {folder}/federation/logs")
            opened = partial(coordinate.open_run, settings, made.admin, consent=consent)
            train(opened, Path(settings.output))
    except KeyboardInterrupt:
        raise KeyboardInterrupt("stopped, with the server and the sites of the demo") from None
    echo(f"kits: {folder}/federation   sites' data and site.toml: {folder}/sites   audit logs: KIT/shepherd")
