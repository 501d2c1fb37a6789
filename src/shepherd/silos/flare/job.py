"""A job folder for FLARE, written by hand: its own writer would pack our source into it as foreign code.

NAME/
  meta.json
  server/config/config_fed_server.json      our Controller, by its class
  server/config/shepherd/order.json         what to run
  server/config/shepherd/round-00000/       the checkpoint to go on from
  site/config/config_fed_client.json        our Executor, by its class
"""

from __future__ import annotations

import json
import math
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from shepherd.io.atomic import disk_errors, write_atomic
from shepherd.silos.protocol import wire
from shepherd.silos.protocol.jobspec import RUN_ID, JobSpec

CONTROLLER = "shepherd.silos.flare.controller.Rounds"
EXECUTOR = "shepherd.silos.flare.executor.Door"
TASK = "ask"
ORDER = "order.json"
BROUGHT = "shepherd"
POLL = 0.2
"""Seconds after which an idle site asks the server for work again; FLARE's 2 s would be most of a round."""
WAIT = 30
"""Seconds after which a short message is taken for lost and sent again; FLARE's 300 s are most of a round."""
PIECE_WAIT = 60
"""Seconds in which a piece of a message begins to come; FLARE waits 600 s, and tries four times as we do."""
MOST_PATIENCE = 24 * 3600
ANSWER_KEY, PIECE_KEY = "submit_task_result_timeout", "np_streaming_per_request_timeout"
"""FLARE's names of the waits for an answer to get through, and for a piece of a message."""


def write(folder: Path, order: JobSpec, state: Path, cohort: int) -> Path:
    """Write the job of an order, with the checkpoint folder `state` to go on from; give the job's folder.

    Args:
        cohort: how many sites a round asks, on average.

    Raises:
        FolderError: the disk is full or the folder cannot be written.
    """
    job = folder / _name(order.run)
    with disk_errors(folder):
        shutil.rmtree(job, ignore_errors=True)
        brought = job / "server" / "config" / BROUGHT
        brought.mkdir(parents=True)
        (job / "site" / "config").mkdir(parents=True)
        shutil.copytree(state, brought / state.name)
    _json(job / "meta.json", _meta(order.run, order.sites, quorum(order, cohort)))
    seconds = patience(state)
    for kind in ("server", "site"):
        name, table = configuration(kind, seconds)
        _json(job / kind / "config" / name, table)
    write_atomic(brought / ORDER, order.text())
    return job


def configuration(kind: str, patience: int) -> tuple[str, dict[str, Any]]:
    """FLARE's configuration of our job: the file's name and what it says.

    Args:
        kind: server or site.
        patience: seconds after which a site takes an answer for lost and sends it again.
    """
    if kind == "server":
        return "config_fed_server.json", _server()
    return "config_fed_client.json", _site(patience)


def patience(state: Path) -> int:
    """Seconds in which an answer, about as large as the checkpoint `state`, gets through a slow line."""
    size = sum(file.stat().st_size for file in state.iterdir())
    return min(MOST_PATIENCE, math.ceil(WAIT + size / wire.MIN_LINK_BYTES_PER_S))


def _meta(run: str, sites: Sequence[str], quorum: int) -> dict[str, Any]:
    # fewer sites could finish no round, and a server that was killed schedules what it was given by itself
    return {
        "name": _name(run),
        "resource_spec": {},
        "min_clients": quorum,
        "deploy_map": {"server": ["server"], "site": list(sites)},
    }


def run_of(name: Any) -> str | None:
    """The id of the run that a job of this name goes on with; None where no job of ours has it."""
    found = re.fullmatch(_name(f"({RUN_ID})"), name) if isinstance(name, str) else None
    return found[1] if found else None


def quorum(order: JobSpec, cohort: int) -> int:
    """Sites that a job is not begun without: those of a round's quorum, and two where the run has two."""
    table, sites = order.federation, len(order.sites)
    return max(min(2, sites), math.ceil(table.quorum * cohort - 1e-9))


def _server() -> dict[str, Any]:
    return {
        "format_version": 2,
        "server": {"task_request_interval": POLL},
        PIECE_KEY: PIECE_WAIT,
        "task_data_filters": [],
        "task_result_filters": [],
        "components": [],
        "workflows": [{"id": "rounds", "path": CONTROLLER, "args": {}}],
    }


def _site(patience: int) -> dict[str, Any]:
    return {
        "format_version": 2,
        ANSWER_KEY: patience,
        PIECE_KEY: PIECE_WAIT,
        "executors": [{"tasks": [TASK], "executor": {"path": EXECUTOR, "args": {}}}],
        "task_data_filters": [],
        "task_result_filters": [],
        "components": [],
    }


def _name(run: str) -> str:
    return f"shepherd-{run}"


def _json(path: Path, value: Any) -> None:
    write_atomic(path, json.dumps(value, indent=1) + "\n")
