"""The command `shepherd`. Heavy packages are imported only by the commands that use them.

An error that a person can fix is one line on stderr and exit code 2; Ctrl-C is exit code 130, SIGTERM 143.
"""

from __future__ import annotations

import errno
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any, NoReturn

import click

from shepherd.errors import ShepherdError
from shepherd.machine import malloc
from shepherd.ui.cli.answer_commands import chat, generate
from shepherd.ui.cli.compare_commands import compare, judge, report, watch
from shepherd.ui.cli.data_commands import data
from shepherd.ui.cli.evaluate_commands import evaluate
from shepherd.ui.cli.export_commands import export, list_plugins
from shepherd.ui.cli.run_commands import new, resume, run
from shepherd.ui.cli.silos import silos
from shepherd.version import DISTRIBUTION
from shepherd.visible import in_this_process, shown

_sigterm_received = threading.Event()


@contextmanager
def _sigterm_as_interrupt() -> Iterator[None]:
    """Have SIGTERM, which Slurm, Kubernetes and `timeout` send, stop a command as Ctrl-C does."""

    def stop(*_: object) -> None:
        _sigterm_received.set()
        raise KeyboardInterrupt

    _sigterm_received.clear()
    if threading.current_thread() is not threading.main_thread():  # only there can a handler be set
        yield
        return
    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


class Commands(click.Group):
    """A group whose commands report a fault in one sentence instead of a traceback."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            with _sigterm_as_interrupt():
                return super().invoke(ctx)
        except ShepherdError as error:
            _fail(str(error))
        except ModuleNotFoundError as error:
            if find_spec("torch") is not None:
                raise
            _fail(
                f"{error.name} is not installed: this installation can only run the server of a federation;"
                " to use this command, run pip install shepherd-fit"
            )
        except KeyboardInterrupt as stopped:
            number = signal.SIGTERM if _sigterm_received.is_set() else signal.SIGINT
            _fail(str(stopped) or "stopped", 128 + number)  # as shells count
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            where = f" of {error.filename}" if error.filename else ""
            _fail(f"the disk{where} is full; free some space, then `shepherd resume` the run")


def _fail(message: str, code: int = 2) -> NoReturn:
    click.echo(f"shepherd: {shown(message)}", err=True)
    raise click.exceptions.Exit(code)


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name=DISTRIBUTION, prog_name="shepherd")
def main() -> None:
    """Federated instruction tuning of language models.

    Private data stay with their clients; small adapters travel.
    """


for command in (
    *(new, run, resume, data),
    *(evaluate, compare, judge, report, watch),
    *(generate, chat, export, list_plugins, silos),
):
    main.add_command(command)


def start() -> None:
    """Entry point of the program; commands that tune restart once with allocator settings for tuning."""
    if sys.argv[1:2] in (["run"], ["resume"], ["compare"]):
        malloc.restart()
    in_this_process()
    main(prog_name="shepherd")
