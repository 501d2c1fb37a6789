"""The command `shepherd`. Heavy packages are imported only by the commands that use them.

An error that a person can fix is one line on stderr and exit code 2. Ctrl-C is exit code 130, SIGTERM 143 and
SIGHUP 129.
"""

from __future__ import annotations

import errno
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from typing import Any, NoReturn

import click

from shepherd.errors import ShepherdError
from shepherd.machine import malloc
from shepherd.ui.cli.answer_commands import chat, generate
from shepherd.ui.cli.audit_commands import audit
from shepherd.ui.cli.compare_commands import compare, judge, report, watch
from shepherd.ui.cli.data_commands import data
from shepherd.ui.cli.demo_commands import demo
from shepherd.ui.cli.drill_commands import drill
from shepherd.ui.cli.evaluate_commands import evaluate
from shepherd.ui.cli.export_commands import export, list_plugins, merge, push
from shepherd.ui.cli.privacy_commands import privacy
from shepherd.ui.cli.run_commands import new, plan, resume, run
from shepherd.ui.cli.silos import silos
from shepherd.version import DISTRIBUTION, install
from shepherd.visible import in_this_process, shown

ASKED_TO_STOP = [signal.SIGTERM, *([signal.SIGHUP] if hasattr(signal, "SIGHUP") else [])]
"""What Slurm, Kubernetes and `timeout` send, and what a terminal sends that is closed."""


class _Stops:
    """Has the signals of `ASKED_TO_STOP` stop a command as Ctrl-C does, and knows which one came last."""

    def __init__(self) -> None:
        self.last = signal.SIGINT

    @contextmanager
    def as_interrupts(self) -> Iterator[None]:
        if threading.current_thread() is not threading.main_thread():  # only there can a handler be set
            yield
            return
        # what is ignored stays so: `nohup` ignores SIGHUP
        heard = [number for number in ASKED_TO_STOP if signal.getsignal(number) != signal.SIG_IGN]
        before = {number: signal.signal(number, self._stop) for number in heard}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, signal.SIG_DFL if handler is None else handler)  # None: not Python's

    def _stop(self, number: int, _: object) -> None:
        self.last = signal.Signals(number)
        raise KeyboardInterrupt


class Commands(click.Group):
    """A group whose commands report a fault in one sentence instead of a traceback."""

    def invoke(self, ctx: click.Context) -> Any:
        stops = _Stops()
        try:
            with stops.as_interrupts():
                return super().invoke(ctx)
        except ShepherdError as error:
            _fail(str(error))
        except ModuleNotFoundError as error:
            if find_spec("torch") is not None:
                raise
            _fail(
                f"{error.name} is not installed: this installation can only run the server of a federation;"
                f" to use this command, run {install('train')}"
            )
        except KeyboardInterrupt as stopped:
            _fail(str(stopped) or "stopped", 128 + stops.last)  # as shells count
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            where = f" of {error.filename}" if error.filename else ""
            _fail(f"the disk{where} is full; free some space, then `shepherd resume` the run")


def _fail(message: str, code: int = 2) -> NoReturn:
    with suppress(OSError):  # a terminal that is closed, which nobody reads
        click.echo(f"shepherd: {shown(message)}", err=True)
    raise click.exceptions.Exit(code)


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name=DISTRIBUTION, prog_name="shepherd")
def main() -> None:
    """Federated instruction tuning of language models.

    Private data stay with their clients; small adapters travel.
    """


for command in (
    *(demo, new, plan, run, resume, data, privacy),
    *(evaluate, compare, judge, audit, drill, report, watch),
    *(generate, chat, export, merge, push, list_plugins, silos),
):
    main.add_command(command)


def _open_closed_streams() -> None:
    """Drop what is printed where the program was started with its output closed (`>&-`).

    Otherwise a file of a run would get the number of that stream, and what libraries print there.
    """
    for name, number in (("stdin", 0), ("stdout", 1), ("stderr", 2)):
        if getattr(sys, name) is None:
            null = os.open(os.devnull, os.O_RDWR)
            if null != number:
                os.dup2(null, number)
                os.close(null)
            setattr(sys, name, open(number, "w" if number else "r", closefd=False))  # noqa: SIM115


def start() -> None:
    """Entry point of the program; commands that tune restart once with allocator settings for tuning."""
    if sys.argv[1:2] in (["demo"], ["plan"], ["run"], ["resume"], ["compare"], ["audit"], ["drill"]):
        malloc.restart()
    _open_closed_streams()
    in_this_process()
    main(prog_name="shepherd")
