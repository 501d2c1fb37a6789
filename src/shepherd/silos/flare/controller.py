"""FLARE's side of the server: carries the requests of our round loop, and its news to the coordinator."""

from __future__ import annotations

import json
import math
import os
import queue
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

from nvflare.apis.client import Client
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import Shareable
from nvflare.app_common.abstract.fl_model import FLModel
from nvflare.app_common.workflows.model_controller import ModelController

from shepherd.errors import FederationError, ShepherdError, WireError
from shepherd.io.atomic import disk_errors, write_atomic
from shepherd.machine import malloc
from shepherd.silos.flare import known_sites, message, tls
from shepherd.silos.flare.job import BROUGHT, ORDER, TASK
from shepherd.silos.flare.patches.server_job import outlive_updates
from shepherd.silos.protocol import jobspec, wire
from shepherd.silos.server import run_status, trusted_modules
from shepherd.silos.server.server_run import ServerRun

TOPIC = "shepherd"
HOME = "shepherd"
SUBMITTER = "submitter"
"""A file of the run's folder: the name of the administrator who submitted its first job."""
LINGER_S = 120.0
"""How long a finished job waits for the coordinator to take what it made; it is kept at the server."""
SUCCESSOR_S = 20.0
"""How long to wait for another job, where this one lacks a site that was there when it was submitted."""
AWAY_S = 60.0
"""Ignore the coordinator's list of absent sites once it is this old."""
RELEASE_S = 2.0
"""How long FLARE may take to let go of a task that has ended; its own watch looks each 0.05 s."""
TICK_S = 0.05


class Telling(Protocol):
    """What has an answer for the coordinator."""

    def snapshot(self, asked: Mapping[str, Any]) -> dict[str, Any]: ...


class Stopped(FederationError):
    """The job was ended from outside."""


class Rounds(ModelController):  # type: ignore[misc]
    """Goes through the rounds of one run, from where its last job stopped."""

    def __init__(self) -> None:
        super().__init__(persistor_id="", ignore_result_error=True, task_check_period=0.05)
        self._away: frozenset[str] = frozenset()
        self._unawaited: frozenset[str] = frozenset()
        self._heard = 0.0  # of the coordinator, on the monotonic clock

    def run(self) -> None:
        """FLARE's entry: the whole job."""
        workspace = self.engine.get_workspace()
        job = self.fl_ctx.get_job_id()
        brought = Path(workspace.get_app_config_dir(job)) / BROUGHT
        meta = Path(workspace.get_job_meta_path(job))
        try:
            served = self._service(brought, meta, Path(workspace.get_root_dir()))
        except ShepherdError as error:  # for the coordinator to hear: another job would fare no better
            self.engine.register_app_command(TOPIC, self._told, run_status.failed_status(error))
        else:
            self.engine.register_app_command(TOPIC, self._told, served)
            outlive_updates()
            self._await_successor(served.order.sites)
            if not self.abort_signal.triggered:
                served.run()
        self._linger()

    def _service(self, brought: Path, meta: Path, kit: Path) -> ServerRun:
        # FLARE's own word: it writes over whatever a submitted job says of its submitter
        submitted = json.loads(meta.read_text(encoding="utf8"))
        _require_member(kit, submitted["submitter_name"])
        order = jobspec.read((brought / ORDER).read_text(encoding="utf8"))
        _require_same_version(order.version)
        served = ServerRun(
            order,
            kit / HOME / "runs" / order.run,
            next(brought.glob("round-*"), None),
            self,
            known=known_sites.read(kit).union(client.name for client in self.engine.get_clients()),
            trusted=trusted_modules.read(kit / "local"),
        )
        served.require_sound()
        _require_submitter(served.home, submitted["submitter_name"], submitted["submitter_role"])
        return served

    def present(self) -> Sequence[str]:
        """The sites of this job that are there."""
        names = {client.name for client in self.engine.get_clients()}
        return sorted(name for name in names if not self._gone(name))

    def ask(self, message_: bytes, sites: Sequence[str], seconds: float) -> Iterator[tuple[str, bytes]]:
        """Send to the sites; yield answers as they come; see `site_federation.Transport`."""
        malloc.release_free_memory()  # so that the peak is that of one wave
        inbox: queue.Queue[FLModel] = queue.Queue()
        self.send_model(
            task_name=TASK,
            data=message.wrapped(message_),
            targets=list(sites),
            timeout=math.ceil(seconds) + 1,
            callback=inbox.put,
        )
        unanswered = set(sites)
        try:
            yield from self._answers(inbox, unanswered, time.monotonic() + seconds)
        finally:  # also where nobody asks for the end, since all have answered
            self._let_go()

    def _answers(
        self, inbox: queue.Queue[FLModel], unanswered: set[str], ends: float
    ) -> Iterator[tuple[str, bytes]]:
        """The answers as they come; takes out of `unanswered` whose was passed on."""
        waiting = set(unanswered)  # of one that is gone an answer may still be on its way
        while waiting:
            # seen before the inbox is: an answer is put there before its task stands no more
            over = time.monotonic() > ends or not self.get_num_standing_tasks()
            came = self._next(inbox, ends)
            if came is not None and (site := came.meta["client_name"]) in unanswered:
                unanswered.discard(site)
                waiting.discard(site)
                answer, came = _bytes(came), None  # whose arrays would wait here as well
                yield site, answer
                del answer
            elif came is None and over:
                break
            else:
                waiting = {site for site in waiting if not self._gone(site)}

    def _let_go(self) -> None:
        """End what stands yet, and wait until FLARE holds no message any more: the next one is as large."""
        self.cancel_all_tasks(fl_ctx=self.fl_ctx)
        ends = time.monotonic() + RELEASE_S
        while self.get_num_standing_tasks() and time.monotonic() < ends:
            time.sleep(TICK_S)

    def process_result_of_unknown_task(
        self, client: Client, task_name: str, client_task_id: str, result: Shareable, fl_ctx: FLContext
    ) -> None:
        """FLARE's hook for an answer to a question that stands no more: it is dropped."""
        self.log_warning(fl_ctx, f"dropped a late answer of {client.name}")

    def _next(self, inbox: queue.Queue[FLModel], ends: float) -> FLModel | None:
        if self.abort_signal.triggered:
            raise Stopped("the job was stopped; `shepherd resume` goes on with the run")
        try:
            return inbox.get(timeout=max(0.0, min(TICK_S, ends - time.monotonic())))
        except queue.Empty:
            return None

    def _gone(self, site: str) -> bool:
        away = self._away if time.monotonic() - self._heard < AWAY_S else ()
        return site in away or self.get_client_disconnect_time(site) is not None

    def _told(self, topic: str, asked: Any, fl_ctx: FLContext, served: Telling) -> dict[str, Any]:
        """FLARE's hook for a command of the coordinator's."""
        asked = asked if isinstance(asked, dict) else {}
        if "away" in asked or "state" in asked:  # who only looks on is not who follows the run
            self._heard = time.monotonic()
        if "away" in asked:  # who fetches a checkpoint does not say
            self._away = frozenset(asked["away"])
        if "unawaited" in asked:
            self._unawaited = frozenset(asked["unawaited"])
        return {**served.snapshot(asked), "present": list(self.present())}

    def _await_successor(self, sites: Sequence[str]) -> None:
        """Begin no round while the coordinator can yet have a job begin that all the sites take part in.

        FLARE lets no site into a job that has begun, so one that died in that moment would miss rounds.
        """
        ends = time.monotonic() + SUCCESSOR_S
        while set(sites) - self._away - self._unawaited - set(self.present()):
            if self.abort_signal.triggered or time.monotonic() > ends:
                return
            time.sleep(TICK_S)

    def _linger(self) -> None:
        ends = time.monotonic() + LINGER_S
        while not (self.abort_signal.triggered or time.monotonic() > ends):
            time.sleep(TICK_S)


def _bytes(model: FLModel) -> bytes:
    try:
        return message.unwrapped(model)
    except WireError:
        return b""  # which cannot be read either, and is counted so


def _require_same_version(version: str) -> None:
    mine = wire.version()
    if mine != version:
        raise FederationError(
            f"the run was submitted by shepherd-fit {version} and this server has {mine}; install the same"
        )


def _require_member(kit: Path, name: str) -> None:
    """Raise FederationError where the administrator was removed, whose job may have waited for its turn."""
    if name in tls.Removed(kit / tls.REMOVED):
        raise FederationError(f"{name} was removed from the federation; use the kit of another administrator")


def _require_submitter(home: Path, name: str, role: str) -> None:
    """Raise FederationError where another administrator began the run in `home`; a project_admin may."""
    first = _first_submitter(home, name)
    if first != name and role != "project_admin":
        raise FederationError(
            f"the run is {first}'s and {name} is {role}, who may go on with their own alone; use the kit of"
            f" {first} or of a project_admin"
        )


def _first_submitter(home: Path, name: str) -> str:
    """Who submitted the first job of the run in `home`; `name`, where this is the first."""
    kept = home / SUBMITTER
    with disk_errors(home):
        home.mkdir(parents=True, exist_ok=True)
        if not kept.exists():
            mine = write_atomic(home / f"{SUBMITTER}-{os.getpid()}", name)
            mine.chmod(0o600)
            with suppress(FileExistsError):  # whole, and by one of two that begin at once
                os.link(mine, kept)
            mine.unlink()
        return kept.read_text(encoding="utf8")
