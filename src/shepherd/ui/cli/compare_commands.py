"""`shepherd compare`, `judge`, `report` and `watch`: arms against each other, and the page of a run."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Literal

import click
from click.core import ParameterSource

from shepherd.consent import Consent
from shepherd.ui.cli.options import base_url, key_env, overrides, run_file, run_folder
from shepherd.ui.cli.silos import agreed, echo, plugin, ray_cluster, tracker, trust, wished


@click.command(short_help="Compare federated with local and central, or runs.")
@run_file
@overrides
@click.option(
    "--local", "locals_", multiple=True, metavar="CLIENT", help="Client to train alone.  [default: each one]"
)
@click.option(
    "--arm",
    "arms",
    multiple=True,
    metavar='"NAME: key=value ..."',
    help="Federated variant to train as well.",
)
@click.option(
    "--match",
    type=click.Choice(["both", "steps", "examples"]),
    default="both",
    show_default=True,
    help="What arms get equal numbers of; `both` trains the centralised arm twice, local ones by steps.",
)
@click.option(
    "--seeds",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="How often each arm is trained, with a seed for each time.",
)
@click.option("--max-calls", type=click.IntRange(min=0), help="Most requests to send to the judge.")
@click.option(
    "--output",
    type=click.Path(path_type=Path),
    metavar="FILE.json",
    help="Of finished runs: also write the comparison into this file.",
)
@click.option(
    "--html",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE.html",
    help="Of finished runs: also write a page that needs no network into this file.",
)
@base_url
@key_env
@trust
@plugin
@tracker
@ray_cluster
@click.pass_context
def compare(
    context: click.Context,
    run_file: Path,
    overrides: tuple[str, ...],
    locals_: tuple[str, ...],
    arms: tuple[str, ...],
    match: Literal["both", "steps", "examples"],
    seeds: int,
    max_calls: int | None,
    output: Path | None,
    html: Path | None,
    base_url: str | None,
    key_env: str | None,
    remote_code: bool,
    plugins: tuple[str, ...],
    trackers: tuple[str, ...],
    ray_address: str | None,
) -> None:
    """Train and score the arms: base, each client alone, all data in one place, federated.

    What is already trained or scored is kept: to continue a stopped comparison, give the same command
    again. With a [judge] in the run file, the answers are judged too.

    Finished runs of any rank, base or method are compared on the held-out examples that all of them have:
    shepherd compare RUN_A RUN_B ...
    """
    if run_file.is_dir():
        return _compare_runs(context, run_file, overrides, output, html, agreed(remote_code, plugins))
    if output is not None:
        raise click.UsageError("--output is for finished runs; a run file names its own output")
    if html is not None:
        raise click.UsageError(
            "--html is for finished runs; `shepherd report RUN_FOLDER` writes a run's page"
        )
    from shepherd.compare.arms import CompareSpec, variant
    from shepherd.overrides import read

    given = {"judge.base_url": base_url, "judge.key_env": key_env}
    judge_keys = (f"{key}={json.dumps(value)}" for key, value in given.items() if value is not None)
    settings = read(run_file, (*wished(overrides, remote_code), *judge_keys))
    consent = agreed(remote_code, plugins, trackers, base_url, key_env, ray_address=ray_address)
    for arm in arms:
        variant(arm)  # a mistake in it is reported before any training
    from shepherd.compare.comparison import compare, is_finished
    from shepherd.compare.judged_arms import judged, require_judge
    from shepherd.run.release import settled
    from shepherd.ui.terminal.comparison_table import print_comparison
    from shepherd.ui.terminal.running import plain_lines
    from shepherd.ui.terminal.scores_table import print_release
    from shepherd.ui.terminal.train import stop_message, train_arm
    from shepherd.ui.terminal.verdict_table import print_verdicts

    asked = CompareSpec(locals=locals_ or None, variants=arms, match=match, seeds=seeds)
    output = Path(settings.output)
    if settings.judge.model and not is_finished(settings, asked):
        require_judge(settings, consent, max_calls)
    try:
        with plain_lines() as display:
            found = compare(settings, asked, train=train_arm, consent=consent, max_calls=max_calls)
            print_comparison(found)
            print_release(settled(output))
            if settings.judge.model:
                found = judged(output, settings.judge, display.echo, max_calls, consent)
                print_verdicts(found["judge"])
    except KeyboardInterrupt:
        raise KeyboardInterrupt(stop_message(output, "compare")) from None
    name = shlex.quote(str(output))
    echo(f"\nTry next:\n  shepherd report {name}\n  shepherd chat {name}")


OF_RUN_FILES = (
    "locals_",
    "arms",
    "match",
    "seeds",
    "max_calls",
    "base_url",
    "key_env",
    "trackers",
    "ray_address",
)
"""Parameters of `compare` that finished runs have no use for."""


def _compare_runs(
    context: click.Context,
    first: Path,
    others: tuple[str, ...],
    output: Path | None,
    html: Path | None,
    consent: Consent,
) -> None:
    """Compare finished runs; `others` are run folders and overrides of [evaluation]."""
    for parameter in context.command.params:
        source = context.get_parameter_source(parameter.name or "")
        if parameter.name in OF_RUN_FILES and source is ParameterSource.COMMANDLINE:
            raise click.UsageError(
                f"{parameter.opts[0]} is for a run file; finished runs are compared as they are"
            )
    from shepherd.compare.folders import write_json
    from shepherd.compare.runs import compare_runs
    from shepherd.io.atomic import require_place
    from shepherd.ui.terminal.comparison_table import print_comparison
    from shepherd.ui.terminal.running import plain_lines

    overrides = [each for each in others if "=" in each and not Path(each).is_dir()]
    paths = [first, *(Path(each) for each in others if each not in overrides)]
    for file in filter(None, (output, html)):
        require_place(file)
    with plain_lines():
        found = compare_runs(paths, overrides, consent)
    print_comparison(found)
    if output is not None:
        echo(f"wrote {write_json(output, found)}")
    if html is not None:
        from shepherd.ui.report.writing import write_runs

        echo(f"wrote {write_runs(html, paths, found)}")


@click.command()
@click.argument("first", type=click.Path(path_type=Path), metavar="A")
@click.argument("second", type=click.Path(path_type=Path), metavar="B")
@overrides
@click.option(
    "--questions",
    metavar="FILE",
    help='File, or "heldout", "vicuna", "mt-bench".  [default: as in the run file]',
)
@base_url
@key_env
@click.option("--model", help="Model of the judge.")
@click.option("--max-calls", type=click.IntRange(min=0), help="Most requests to send.")
@click.option(
    "--verdicts",
    type=click.Path(path_type=Path),
    metavar="FOLDER",
    help="Folder of the verdicts.  [default: in A's run; for files outside a run, this user's cache]",
)
@trust
def judge(
    first: Path,
    second: Path,
    overrides: tuple[str, ...],
    max_calls: int | None,
    verdicts: Path | None,
    remote_code: bool,
    **options: str | None,
) -> None:
    """Have a judge compare two answers files, adapters or runs.

    Under the protocol `fedit` the judge reads A's answer first, and B's sum is divided by A's. Any key of
    [judge] can be overridden: protocol=fedit limit=80; the judge's address and the variable of its key only
    by their options.
    """
    from shepherd.compare.judged_arms import judge_two
    from shepherd.ui.terminal.running import plain_lines
    from shepherd.ui.terminal.verdict_table import print_verdicts

    given = {name: value for name, value in options.items() if value is not None}
    consent = agreed(remote_code, base_url=options["base_url"], key_env=options["key_env"])
    with plain_lines() as display:
        found = judge_two(first, second, overrides, given, display.echo, max_calls, consent, verdicts)
    print_verdicts(found)


@click.command(short_help="Write a run's report as one HTML page.")
@run_folder
def report(folder: Path) -> None:
    """Write report.html, a page that needs no network, and report.json, the figures on it."""
    from shepherd.ui.report import write

    echo(f"wrote {write(folder)}")


@click.command(short_help="Serve the report of a run while it trains.")
@run_folder
@click.option(
    "--port", type=click.IntRange(0, 65535), default=0, help="Port of 127.0.0.1.  [default: a free one]"
)
def watch(folder: Path, port: int) -> None:
    """Serve the report of a run while it trains, on this machine only."""
    from shepherd.ui.report import watch

    watch(folder, port, echo)
