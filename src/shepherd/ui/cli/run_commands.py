"""`shepherd new`, `run` and `resume`: write a run file, train with it, continue a run."""

from __future__ import annotations

import shlex
from pathlib import Path

import click

from shepherd.errors import FolderError
from shepherd.io.progress import many
from shepherd.ui.cli.options import overrides, run_file, run_folder
from shepherd.ui.cli.silos import agreed, echo, plugin, ray_cluster, require_flare, tracker, trust, wished


@click.command(short_help="Write a run file that fits the data and the base.")
@click.argument("file", type=click.Path(path_type=Path), default=Path("run.toml"), metavar="[FILE]")
@click.option(
    "--data",
    metavar="FILE",
    help="File, folder with one file per client, or id of a Hugging Face dataset.",
)
@click.option("--base", metavar="NAME", help="Folder of a model, or its Hugging Face id.")
@click.option(
    "--instruction", metavar="COLUMN", help="Column of the instruction.  [default: detected, like the others]"
)
@click.option("--context", metavar="COLUMN", help="Column of the context; '' if there is none.")
@click.option("--response", metavar="COLUMN", help="Column of the response.")
@click.option("--messages", metavar="COLUMN", help="Column of a chat's messages; '' if there is none.")
@click.option(
    "--client", metavar="COLUMN", help="Column of the client that holds the row; '' if there is none."
)
@click.option(
    "--category", metavar="COLUMN", help="Column of the category of the instruction; '' if there is none."
)
@trust
def new(file: Path, data: str | None, base: str | None, remote_code: bool, **columns: str | None) -> None:
    """Write a run file with every key, its meaning, and a value that fits the data and the base.

    Without --data, the data are the embedded world; without --base, the base is the embedded tiny one.
    """
    from shepherd.run.run_file import write  # torch takes seconds

    sources = {name: value for name, value in {"data": data, "base": base}.items() if value}
    given = {part: name for part, name in columns.items() if name is not None}
    for sentence in write(file, given=given, consent=agreed(remote_code), **sources):
        echo(sentence)
    echo(f"wrote {file}; next: shepherd data check {shlex.quote(str(file))}")


@click.command()
@run_file
@overrides
@click.option(
    "--silos",
    "kit",
    type=click.Path(path_type=Path),
    metavar="ADMIN_KIT",
    help="Train over the sites of a federation, with this kit.",
)
@trust
@plugin
@tracker
@ray_cluster
def run(
    run_file: Path,
    overrides: tuple[str, ...],
    kit: Path | None,
    remote_code: bool,
    plugins: tuple[str, ...],
    trackers: tuple[str, ...],
    ray_address: str | None,
) -> None:
    """Train as described in a run file.

    Any key can be overridden: federation.rounds=2 tuning.max_steps=3
    """
    from shepherd.overrides import read
    from shepherd.plugins import require
    from shepherd.run.folder import require_free

    settings = read(run_file, wished(overrides, remote_code))
    require_free(settings.output)
    consent = agreed(remote_code, plugins, trackers, ray_address=ray_address)
    require(settings, consent.plugins)
    from shepherd.ui.terminal.train import train

    if kit is not None:
        require_flare()
        from shepherd.silos.coordinator import coordinate

        train(lambda: coordinate.open_run(settings, kit, consent=consent), Path(settings.output))
        return
    from shepherd.run.opening import open_run  # torch takes seconds, a wrong key should not

    train(lambda: open_run(settings, consent=consent), Path(settings.output))


@click.command(short_help="Continue a run that was stopped, or extend it.")
@run_folder
@overrides
@click.option(
    "--silos",
    "kit",
    type=click.Path(path_type=Path),
    metavar="ADMIN_KIT",
    help="New place of the kit of a run over sites, if it has moved.",
)
@trust
@plugin
@tracker
@ray_cluster
def resume(
    folder: Path,
    overrides: tuple[str, ...],
    kit: Path | None,
    remote_code: bool,
    plugins: tuple[str, ...],
    trackers: tuple[str, ...],
    ray_address: str | None,
) -> None:
    """Continue a run that was stopped or killed, after its last finished round.

    A run gets more rounds by federation.rounds=30; what its rounds were trained with cannot change.
    """
    from shepherd.run.changes import continued
    from shepherd.run.folder import is_finished, is_over_silos, read_settings

    rounds = continued(folder, overrides).federation.rounds
    consent = agreed(remote_code, plugins, trackers, ray_address=ray_address)
    if is_finished(folder) and rounds == read_settings(folder).federation.rounds:
        done = many(rounds, "round")
        echo(f"{folder} is already finished, after {done}; its adapter is in {folder / 'adapter'}")
        return
    from shepherd.ui.terminal.train import train

    if is_over_silos(folder):
        require_flare()
        from shepherd.silos.coordinator import coordinate

        train(lambda: coordinate.resume(folder, kit=kit, consent=consent, overrides=overrides), folder)
        return
    if kit is not None:
        raise FolderError(f"the run in {folder} is not a run over sites; resume it without --silos")
    from shepherd.run.opening import resume

    train(lambda: resume(folder, consent=consent, overrides=overrides), folder)
