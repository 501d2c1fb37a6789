"""Write a job folder for FLARE; its own writer would add our source to it as custom code.

NAME/
  meta.json
  server/config/config_fed_server.json      our Controller, by its class
  server/config/shepherd/order.json         what to run
  server/config/shepherd/round-00000/       the checkpoint to start from
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
PAYLOAD = "shepherd"
TASK_POLL_S = 0.2
"""Time after which an idle site asks the server for a task again; FLARE's 2 s could be most of a round."""
MESSAGE_TIMEOUT_S = 30
"""Time after which a short message counts as lost and is sent again; FLARE's 300 s could exceed a round."""
PIECE_TIMEOUT_S = 60
"""Time in which a piece of a message must start to arrive; FLARE's default is 600 s."""
MAX_REPLY_TIMEOUT_S = 24 * 3600
ANSWER_KEY, PIECE_KEY = "submit_task_result_timeout", "np_streaming_per_request_timeout"
"""FLARE's names of the time-outs for sending an answer, and for a piece of a message."""


def write(folder: Path, order: JobSpec, state: Path, cohort: int) -> Path:
    """Write the job folder of an order, to start from the checkpoint folder `state`; return its path.

    Args:
        cohort: mean number of sites that a round asks.

    Raises:
        FolderError: the disk is full or the folder cannot be written.
    """
    job = folder / _name(order.run)
    with disk_errors(folder):
        shutil.rmtree(job, ignore_errors=True)
        brought = job / "server" / "config" / PAYLOAD
        brought.mkdir(parents=True)
        (job / "site" / "config").mkdir(parents=True)
        shutil.copytree(state, brought / state.name)
    _json(job / "meta.json", _meta(order.run, order.sites, quorum(order, cohort)))
    seconds = reply_timeout(state)
    for kind in ("server", "site"):
        name, table = configuration(kind, seconds)
        _json(job / kind / "config" / name, table)
    write_atomic(brought / ORDER, order.text())
    return job


def configuration(kind: str, reply_timeout: int) -> tuple[str, dict[str, Any]]:
    """FLARE's configuration of our job: file name and content.

    Args:
        kind: server or site.
        reply_timeout: seconds after which a site sends an answer again.
    """
    if kind == "server":
        return "config_fed_server.json", _server()
    return "config_fed_client.json", _site(reply_timeout)


def reply_timeout(state: Path) -> int:
    """Seconds in which an answer, about as large as the checkpoint `state`, gets through a slow line."""
    size = sum(file.stat().st_size for file in state.iterdir())
    return min(MAX_REPLY_TIMEOUT_S, math.ceil(MESSAGE_TIMEOUT_S + size / wire.MIN_LINK_BYTES_PER_S))


def _meta(run: str, sites: Sequence[str], quorum: int) -> dict[str, Any]:
    # with fewer sites no round could finish, and a restarted server schedules its jobs by itself
    return {
        "name": _name(run),
        "resource_spec": {},
        "min_clients": quorum,
        "deploy_map": {"server": ["server"], "site": list(sites)},
    }


def run_of(name: Any) -> str | None:
    """Id of the run that a job of this name continues; None if the name is not of our jobs."""
    found = re.fullmatch(_name(f"({RUN_ID})"), name) if isinstance(name, str) else None
    return found[1] if found else None


def quorum(order: JobSpec, cohort: int) -> int:
    """Fewest sites with which a job starts: a round's quorum, and two if the run has two sites."""
    table, sites = order.federation, len(order.sites)
    return max(min(2, sites), math.ceil(table.quorum * cohort - 1e-9))


def _server() -> dict[str, Any]:
    return {
        "format_version": 2,
        "server": {"task_request_interval": TASK_POLL_S},
        PIECE_KEY: PIECE_TIMEOUT_S,
        "task_data_filters": [],
        "task_result_filters": [],
        "components": [],
        "workflows": [{"id": "rounds", "path": CONTROLLER, "args": {}}],
    }


def _site(reply_timeout: int) -> dict[str, Any]:
    return {
        "format_version": 2,
        ANSWER_KEY: reply_timeout,
        PIECE_KEY: PIECE_TIMEOUT_S,
        "executors": [{"tasks": [TASK], "executor": {"path": EXECUTOR, "args": {}}}],
        "task_data_filters": [],
        "task_result_filters": [],
        "components": [],
    }


def _name(run: str) -> str:
    return f"shepherd-{run}"


def _json(path: Path, value: Any) -> None:
    write_atomic(path, json.dumps(value, indent=1) + "\n")
