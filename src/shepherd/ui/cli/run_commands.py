"""`shepherd new`, `run` and `resume`: write a run file, train with it, continue a run."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from shepherd.consent import Consent
from shepherd.errors import FolderError, SettingsError
from shepherd.io.progress import many
from shepherd.ui.cli.options import overrides, run_file, run_folder
from shepherd.ui.cli.silos import agreed, echo, plugin, ray_cluster, require_flare, tracker, trust, wished

if TYPE_CHECKING:
    from shepherd.settings import RunSettings


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
    if settings.stages and kit is not None:
        raise SettingsError(
            "[[stages]] are trained in one process; run a file without them over sites, one stage after"
            " another"
        )
    consent = agreed(remote_code, plugins, trackers, ray_address=ray_address)
    require(settings, consent.plugins)
    from shepherd.ui.terminal.train import train

    if kit is not None:
        require_flare()
        from shepherd.silos.coordinator import coordinate

        train(lambda: coordinate.open_run(settings, kit, consent=consent), Path(settings.output))
        return
    if settings.stages:
        from shepherd.run import stages

        begun = stages.of_folder(settings.output)
        if begun is not None and stages.has_begun(begun):
            raise FolderError(
                f"{settings.output} holds a run with stages that has begun; continue it with `shepherd resume"
                f" {settings.output}`, or set output to a new folder"
            )
        _train_stages(settings, consent)
        return
    from shepherd.run.opening import open_run  # torch takes seconds, a wrong key should not

    train(lambda: open_run(settings, consent=consent), Path(settings.output))


def _train_stages(settings: RunSettings, consent: Consent) -> None:
    """Train the stages of a run that are not finished, the last one in the run folder itself."""
    from shepherd.run import stages
    from shepherd.run.opening import open_run
    from shepherd.ui.terminal.train import train, train_stage

    stages.begin(settings, consent)
    folder = Path(settings.output)
    last = stages.train_before(settings, lambda opened: train_stage(opened, folder), consent)
    train(lambda: open_run(last, consent=consent), folder)


@click.command(short_help="Show what a run will take: memory, time, bytes, disk.")
@run_file
@overrides
@click.option(
    "--memory",
    "gigabytes",
    type=click.FloatRange(min=0, min_open=True),
    metavar="GB",
    help="Memory that there is for the run.  [default: what is free on this machine]",
)
@click.option("--json", "as_json", is_flag=True, help="Print the figures as a JSON object.")
@trust
@plugin
@click.pass_context
def plan(
    context: click.Context,
    run_file: Path,
    overrides: tuple[str, ...],
    gigabytes: float | None,
    as_json: bool,
    remote_code: bool,
    plugins: tuple[str, ...],
) -> None:
    """Show what a run will take on this machine, and what to change if it does not fit.

    The base is not loaded: its size comes from its configuration, and its speed from a trial of a few layers
    with random weights, which takes seconds. The exit code is 1 if the run does not fit.

    Any key can be overridden: adapter.rank=16 machine.workers=1
    """
    from shepherd.overrides import read, require_one_stage

    settings = read(run_file, wished(overrides, remote_code))
    from shepherd.run.forecast import forecast  # torch takes seconds
    from shepherd.ui.terminal.forecast_table import print_forecast
    from shepherd.ui.terminal.running import plain_lines

    require_one_stage(settings, "plan")
    available = None if gigabytes is None else int(gigabytes * 1e9)
    with plain_lines(sys.stderr):
        found = forecast(settings, agreed(remote_code, plugins), available=available)
    if as_json:
        click.echo(found.text(), nl=False)
    else:
        print_forecast(found)
    if not found.fits:
        context.exit(1)


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
    from shepherd.run.folder import STAGES_FILE, is_finished, is_over_silos, is_run, read_settings

    consent = agreed(remote_code, plugins, trackers, ray_address=ray_address)
    if (folder / STAGES_FILE).is_file() and not is_run(folder):
        from shepherd.run.stages import of_folder

        if overrides:
            raise SettingsError(
                f"{folder} has stages before its last one to finish; resume it without {overrides[0]}, and"
                " add that once its last stage has begun"
            )
        staged = of_folder(folder)
        assert staged is not None
        _train_stages(staged, consent)
        return
    rounds = continued(folder, overrides).federation.rounds
    done = is_finished(folder) and rounds == read_settings(folder).federation.rounds
    if done and is_over_silos(folder):
        from shepherd.silos.coordinator import state_file

        done = state_file.is_finished(folder)  # more rounds may have been asked for, and a job be at them
    if done:
        place = folder / "adapter"
        echo(f"{folder} is already finished, after {many(rounds, 'round')}; its adapter is in {place}")
        return
    from shepherd.ui.terminal.train import train

    if is_over_silos(folder):
        require_flare()
        from shepherd.silos.coordinator import coordinate

        train(lambda: coordinate.resume(folder, kit=kit, consent=consent, overrides=overrides), folder)
        return
    if kit is not None:
        raise FolderError(f"the run in {folder} is not a run over sites; resume it without --silos")
    from shepherd.run.resuming import resume

    train(lambda: resume(folder, consent=consent, overrides=overrides), folder)
