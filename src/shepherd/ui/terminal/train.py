"""Train a run on the display, in this process or over sites."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

from shepherd.io.paths import short
from shepherd.run.folder import is_over_silos, is_run
from shepherd.run.log import read_rows
from shepherd.run.measured import figures
from shepherd.settings import PREFERENCES, WORLD
from shepherd.ui.terminal.forecast_table import print_measured
from shepherd.ui.terminal.running import Display, display
from shepherd.ui.terminal.summary import ANY_QUESTION, print_summary

if TYPE_CHECKING:
    from shepherd.run.run import Run
    from shepherd.silos.coordinator.coordinate import SilosRun

OpenRun = Callable[[], "Run | SilosRun"]


def train(open_run: OpenRun, folder: Path) -> None:
    """Train a run to its end and print its final table.

    Raises:
        KeyboardInterrupt: the run was stopped; the message says how to continue it.
    """
    try:
        with display() as shown, closing(open_run()) as run:
            _show_rounds(run, shown)
            finished = run.finish()
        of_world = run.settings.data.source in (WORLD, PREFERENCES)
        question = "Name three animals." if of_world else ANY_QUESTION
        print_measured(figures(folder, read_rows(folder)))
        print_summary(folder, read_rows(folder), finished, question=question)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(stop_message(folder)) from None


def train_stage(open_run: OpenRun, folder: Path) -> None:
    """Train a stage of a run before its last one.

    Args:
        folder: of the whole run, which a message on how to continue names.

    Raises:
        KeyboardInterrupt: the run was stopped; the message says how to continue it.
    """
    try:
        train_arm(open_run)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(
            f"stopped in a stage before the last; continue with: shepherd resume {shlex.quote(str(folder))}"
        ) from None


def train_arm(open_run: OpenRun) -> None:
    """Train a run as an arm of a comparison, which generates the answers of all arms later."""
    with display() as shown, closing(open_run()) as run:
        _show_rounds(run, shown)
        run.finish(answer=False)


def stop_message(folder: Path, command: str = "resume") -> str:
    """A sentence on how far a stopped run came, and how to continue it by `resume` or `compare`."""
    if not is_run(folder):
        return "stopped before the run began"
    done, name = max((row["round"] for row in read_rows(folder)), default=0), shlex.quote(str(folder))
    if command == "compare":
        return (
            f"stopped after round {done}; what is finished is kept: give the same command again to continue"
        )
    if is_over_silos(folder) and _has_job(folder):
        return (
            f"stopped following after round {done}; the run continues at the server: follow it again with"
            f" `shepherd resume {name}`, or end it with `shepherd silos stop {name}`"
        )
    return f"stopped after round {done}; continue with: shepherd resume {name}"


def _has_job(folder: Path) -> bool:
    """Whether a run over sites has a job at the server, by its run folder."""
    from shepherd.silos.coordinator import state_file

    return state_file.read_state(folder)[2] is not None and not state_file.is_finished(folder)


def _show_rounds(run: Run | SilosRun, shown: Display) -> None:
    shown.begin(_title(run), run.until, read_rows(run.folder))
    for _, row in run.rounds():
        if row["round"] == 1:
            for scored_before in read_rows(run.folder)[:1]:
                shown.row(scored_before)
        shown.row(row)


def _title(run: Run | SilosRun) -> str:
    s = run.settings
    base, source = short(s.model.base), short(s.data.source)
    return f"{run.folder}: {s.algorithm.name} on {base}, data {source}, rank {s.adapter.rank}"
