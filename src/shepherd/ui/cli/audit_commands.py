"""`shepherd audit`: find out by attacks what a run gives away."""

from __future__ import annotations

import os
from pathlib import Path

import click

from shepherd.ui.cli.options import also_json, overrides
from shepherd.ui.cli.silos import agreed, echo, plugin, trust, wished

OF_RUN_FILES = ("canaries", "copies", "clients", "output", "overrides")
"""Parameters that an audit of a run folder has no use for."""
CONTRADICTED = 1
"""Exit code where the canaries prove more than the run claims."""


@click.command(short_help="Find out by attacks what a run gives away.")
@click.argument("run", type=click.Path(path_type=Path), metavar="RUN.toml|RUN_FOLDER")
@overrides
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    metavar="FOLDER",
    help="Folder of the audit of a run file.  [default: its output, with -audit]",
)
@click.option(
    "--canaries", type=click.IntRange(min=20), default=200, show_default=True, help="Examples to plant."
)
@click.option(
    "--copies",
    multiple=True,
    type=click.IntRange(min=1),
    metavar="N",
    help="Plant canaries this often, in turn; repeatable.  [default: 1, 1, 4, 16]",
)
@click.option(
    "--client", "clients", multiple=True, metavar="NAME", help="Plant with this client; repeatable."
)
@click.option(
    "--examples",
    type=click.IntRange(min=10),
    default=1000,
    show_default=True,
    help="Most training examples, and most held-out ones, to compare.",
)
@also_json("audit.json")
@trust
@plugin
@click.pass_context
def audit(
    context: click.Context,
    run: Path,
    overrides: tuple[str, ...],
    output: Path | None,
    canaries: int,
    copies: tuple[int, ...],
    clients: tuple[str, ...],
    examples: int,
    json_file: Path | None,
    remote_code: bool,
    plugins: tuple[str, ...],
) -> None:
    """Attack a run: tell its members, find planted examples, and bound epsilon from below.

    A run folder is attacked as it is: who was trained on is inferred from its adapters. A run file is trained
    in a folder of its own, with made-up examples in it; to continue a stopped audit, give the same command
    again.

    The exit code is 1 if what is found contradicts the epsilon that the run claims.
    """
    from shepherd.io.atomic import require_place

    if json_file is not None:
        require_place(json_file)
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    consent = agreed(remote_code, plugins)
    if run.is_dir():
        _require_folder_options(context)
        from shepherd.run.folder import read_settings

        read_settings(run)
        from shepherd.audit.auditing import audit_folder  # torch takes seconds
        from shepherd.ui.terminal.running import plain_lines

        with plain_lines():
            found = audit_folder(run, examples=examples, consent=consent)
    else:
        from shepherd.overrides import read

        settings = read(run, wished(overrides, remote_code))
        from shepherd.audit.auditing import COPIES, Planted, audit_run_file
        from shepherd.ui.terminal.running import plain_lines
        from shepherd.ui.terminal.train import train_arm

        place = output or Path(f"{settings.output}-audit")
        try:
            with plain_lines():
                found = audit_run_file(
                    settings,
                    place,
                    train=train_arm,
                    planted=Planted(count=canaries, copies=copies or COPIES, clients=clients),
                    examples=examples,
                    consent=consent,
                )
        except KeyboardInterrupt:
            raise KeyboardInterrupt(
                "stopped; what is finished is kept: give the same command again to continue"
            ) from None
    from shepherd.audit.auditing import dumped
    from shepherd.io.atomic import write_atomic
    from shepherd.ui.report.writing import write_audit
    from shepherd.ui.terminal.audit_table import print_audit

    page = write_audit(found)
    if json_file is not None:
        write_atomic(json_file, dumped(found))
    print_audit(found)
    echo(f"wrote {page}")
    from shepherd.run.folder import is_run
    from shepherd.run.release import settled

    audited = run if run.is_dir() else Path(settings.output)
    if is_run(audited) and (verdict := settled(audited).sentence()):
        echo(verdict)
    if found.found.contradicted:
        context.exit(CONTRADICTED)


def _require_folder_options(context: click.Context) -> None:
    from click.core import ParameterSource

    for parameter in context.command.params:
        source = context.get_parameter_source(parameter.name or "")
        given = source is ParameterSource.COMMANDLINE and context.params[parameter.name or ""]
        if parameter.name in OF_RUN_FILES and given:
            name = parameter.opts[0] if isinstance(parameter, click.Option) else "key=value"
            raise click.UsageError(f"{name} is for a run file; a run folder is audited as it is")
