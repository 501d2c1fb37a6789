"""`shepherd drill`: find out what each aggregation stands when some clients are bad."""

from __future__ import annotations

import os
from pathlib import Path

import click

from shepherd.io.phrases import listed
from shepherd.ui.cli.options import also_json, overrides, run_file
from shepherd.ui.cli.silos import agreed, echo, plugin, trust, wished


@click.command(short_help="Find out what each aggregation stands when clients are bad.")
@run_file
@overrides
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    metavar="FOLDER",
    help="Folder of the drill.  [default: the run file's output, with -drill]",
)
@click.option(
    "--share",
    type=click.FloatRange(min=0.0, max=1.0),
    default=0.3,
    show_default=True,
    help="Share of the clients that are bad.",
)
@click.option(
    "--attack", "attacks", multiple=True, metavar="NAME", help="Attack to try; repeatable.  [default: all]"
)
@click.option(
    "--rule",
    "rules",
    multiple=True,
    metavar='"NAME key=value ..."',
    help="Aggregation to try, with its keys; transforms come before it and a plus sign; repeatable."
    "  [default: the run file's and all robust ones]",
)
@click.option("--trigger", metavar="TEXT", help="Phrase that the backdoor listens to.")
@click.option("--target", metavar="TEXT", help="Answer that the backdoor plants.")
@click.option(
    "--html",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE.html",
    help="Also write the page there.",
)
@also_json("drill.json")
@trust
@plugin
def drill(
    run_file: Path,
    overrides: tuple[str, ...],
    output: Path | None,
    share: float,
    attacks: tuple[str, ...],
    rules: tuple[str, ...],
    trigger: str | None,
    target: str | None,
    html: Path | None,
    json_file: Path | None,
    remote_code: bool,
    plugins: tuple[str, ...],
) -> None:
    """Train a run file once for each attack and each rule, with a share of its clients bad.

    Each rule has a row without an attack as well. What is already trained is kept: to continue a stopped
    drill, give the same command again. The adapters are for the drill alone.
    """
    from shepherd.io.atomic import require_place, write_atomic
    from shepherd.overrides import read

    for file in (html, json_file):
        if file is not None:
            require_place(file)
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    settings = read(run_file, wished(overrides, remote_code))
    from shepherd.drill import drilling  # torch takes seconds
    from shepherd.drill.scores import TARGET, TRIGGER, Phrase
    from shepherd.ui.report import page
    from shepherd.ui.report.writing import write_drill
    from shepherd.ui.terminal.drill_table import print_drill
    from shepherd.ui.terminal.running import plain_lines

    spec = drilling.DrillSpec(
        share=share,
        attacks=attacks,
        rules=rules,
        phrase=Phrase(trigger=trigger or TRIGGER, target=target or TARGET),
    )
    place = output or Path(f"{settings.output}-drill")
    try:
        with plain_lines():
            found = drilling.drill(settings, place, spec, agreed(remote_code, plugins))
    except KeyboardInterrupt:
        raise KeyboardInterrupt(
            "stopped; what is finished is kept: give the same command again to continue"
        ) from None
    written = write_drill(found)
    if json_file is not None:
        write_atomic(json_file, drilling.dumped(found))
    if html is not None:
        write_atomic(html, page.drill(found.row))
    print_drill(found)
    files = (found.folder / drilling.JSON, written, json_file, html)
    echo(f"wrote {listed([str(file) for file in files if file is not None])}")
