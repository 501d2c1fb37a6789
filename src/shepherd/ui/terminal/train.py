"""A run that goes through its rounds on the display, wherever its clients are."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

from shepherd.io.paths import short
from shepherd.run.folder import is_over_silos, is_run
from shepherd.run.log import read_rows
from shepherd.ui.terminal.running import Display, display
from shepherd.ui.terminal.summary import summary

if TYPE_CHECKING:
    from shepherd.run.run import Run
    from shepherd.silos.coordinator.coordinate import SilosRun

Opened = Callable[[], "Run | SilosRun"]


def train(opened: Opened, folder: Path) -> None:
    """Go through a run's rounds and finish it, with its final table.

    Raises:
        KeyboardInterrupt: it was stopped; the message says how to go on.
    """
    try:
        with display() as seen:
            going = opened()
            with closing(going):
                _rounds(going, seen)
                finished = going.finish()
        summary(folder, read_rows(folder), finished)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(stopped(folder)) from None


def shown(opened: Opened) -> None:
    """Go through a run's rounds; a comparison answers for all its arms later."""
    with display() as seen:
        going = opened()
        with closing(going):
            _rounds(going, seen)
            going.finish(answer=False)


def stopped(folder: Path, command: str = "resume") -> str:
    """What a stopped run has finished, and how to go on with it."""
    if not is_run(folder):
        return "stopped before the run began"
    done, name = max((row["round"] for row in read_rows(folder)), default=0), shlex.quote(str(folder))
    if command == "compare":
        return f"stopped after round {done}; what is made is kept: give the same command again"
    if is_over_silos(folder) and _goes_on(folder):
        return (
            f"followed to round {done}; the run goes on at the server: watch it again with `shepherd resume"
            f" {name}`, or end it with `shepherd silos stop {name}`"
        )
    return f"stopped after round {done}; go on with: shepherd resume {name}"


def _goes_on(folder: Path) -> bool:
    """Whether a run over silos has a job at the server, as far as its folder says."""
    from shepherd.silos.coordinator import state_file

    return state_file.recorded(folder)[2] is not None and not state_file.is_finished(folder)


def _rounds(going: Run | SilosRun, seen: Display) -> None:
    seen.begin(_title(going), going.until, read_rows(going.folder))
    for _, row in going.rounds():
        for base in read_rows(going.folder)[: row["round"] == 1]:  # scored before the first round
            seen.row(base)
        seen.row(row)


def _title(run: Run | SilosRun) -> str:
    s = run.settings
    base, source = short(s.model.base), short(s.data.source)
    return f"{run.folder}: {s.algorithm.name} on {base}, data {source}, rank {s.adapter.rank}"
