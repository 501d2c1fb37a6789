"""`shepherd compare`, `judge`, `report` and `watch`: arms against each other, and the page of a run."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Literal

import click

from shepherd.ui.cli.options import base_url, key_env, overrides, run_file, run_folder
from shepherd.ui.cli.silos import agreed, echo, plugin, tracker, trust, wished


@click.command()
@run_file
@overrides
@click.option("--local", "locals_", multiple=True, metavar="CLIENT", help="Also tunes alone.  [default: all]")
@click.option("--arm", "arms", multiple=True, metavar='"NAME: key=value ..."', help="A federated variant.")
@click.option(
    "--match",
    type=click.Choice(["both", "steps", "examples"]),
    default="both",
    show_default=True,
    help="What arms get the same number of; `both` trains the centralised arm twice, local ones by steps.",
)
@click.option(
    "--seeds", type=click.IntRange(min=1), default=1, show_default=True, help="Trainings of each arm."
)
@click.option("--max-calls", type=click.IntRange(min=0), help="At most so many requests to the judge.")
@base_url
@key_env
@trust
@plugin
@tracker
def compare(
    run_file: Path,
    overrides: tuple[str, ...],
    locals_: tuple[str, ...],
    arms: tuple[str, ...],
    match: Literal["both", "steps", "examples"],
    seeds: int,
    max_calls: int | None,
    base_url: str | None,
    key_env: str | None,
    remote_code: bool,
    plugins: tuple[str, ...],
    trackers: tuple[str, ...],
) -> None:
    """Train and score the arms: base, each client alone, all data in one place, federated.

    What is there already is not made again; a stopped comparison goes on with the same command. Where the
    run file has a [judge], it judges too.
    """
    from shepherd.compare.arms import CompareSpec, variant
    from shepherd.settings import read

    given = {"judge.base_url": base_url, "judge.key_env": key_env}
    said = (f"{key}={json.dumps(value)}" for key, value in given.items() if value is not None)
    settings = read(run_file, (*wished(overrides, remote_code), *said))
    consent = agreed(remote_code, plugins, trackers, base_url, key_env)
    for arm in arms:
        variant(arm)  # a mistake there costs no training
    if settings.judge.model:
        from shepherd.judge.agreed import require_agreed

        require_agreed(settings.judge, consent)
    from shepherd.compare.comparison import compare
    from shepherd.compare.judged_arms import judged
    from shepherd.ui.terminal.comparison_table import compared
    from shepherd.ui.terminal.running import lines
    from shepherd.ui.terminal.train import shown, stopped
    from shepherd.ui.terminal.verdict_table import judged as show_judged

    asked = CompareSpec(locals=locals_ or None, variants=arms, match=match, seeds=seeds)
    output = Path(settings.output)
    try:
        with lines() as seen:
            found = compare(settings, asked, train=shown, consent=consent)
            compared(found)
            if settings.judge.model:
                found = judged(output, settings.judge, seen.echo, max_calls, consent)
                show_judged(found["judge"])
    except KeyboardInterrupt:
        raise KeyboardInterrupt(stopped(output, "compare")) from None
    name = shlex.quote(str(output))
    echo(f"\nTry next:\n  shepherd report {name}\n  shepherd chat {name}")


@click.command()
@click.argument("first", type=click.Path(path_type=Path), metavar="A")
@click.argument("second", type=click.Path(path_type=Path), metavar="B")
@overrides
@click.option(
    "--questions", metavar="FILE", help='Or "heldout", "vicuna", "mt-bench".  [default: the run\'s]'
)
@base_url
@key_env
@click.option("--model", help="The judge.")
@click.option("--max-calls", type=click.IntRange(min=0), help="At most so many requests.")
@trust
def judge(
    first: Path,
    second: Path,
    overrides: tuple[str, ...],
    max_calls: int | None,
    remote_code: bool,
    **options: str | None,
) -> None:
    """Have a judge compare two answers files, adapters or runs.

    A, then B: `fedit` shows A's answer first and prints B's sum by A's. Any key of [judge] can be given:
    protocol=fedit limit=80; its address and the name of its key's variable by their options.
    """
    from shepherd.compare.judged_arms import judge_two
    from shepherd.ui.terminal.running import lines
    from shepherd.ui.terminal.verdict_table import judged as show_judged

    given = {name: value for name, value in options.items() if value is not None}
    consent = agreed(remote_code, base_url=options["base_url"], key_env=options["key_env"])
    with lines() as seen:
        found = judge_two(first, second, overrides, given, seen.echo, max_calls, consent)
    show_judged(found)


@click.command()
@run_folder
def report(folder: Path) -> None:
    """Write report.html, one page that needs no network, and report.json."""
    from shepherd.ui.report import write

    echo(f"wrote {write(folder)}")


@click.command()
@run_folder
@click.option("--port", type=click.IntRange(0, 65535), default=0, help="On this machine.  [default: any]")
def watch(folder: Path, port: int) -> None:
    """Serve the report of a run that is going on, to this machine alone."""
    from shepherd.ui.report import watch

    watch(folder, port, echo)
