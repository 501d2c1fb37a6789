"""FLARE's side of the server: carries the round loop's requests, and its status to the coordinator."""

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
from nvflare.apis.controller_spec import Task
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import Shareable
from nvflare.app_common.abstract.fl_model import FLModel
from nvflare.app_common.workflows.model_controller import ModelController

from shepherd.errors import FederationError, ShepherdError, WireError
from shepherd.io.atomic import disk_errors, write_atomic
from shepherd.machine import malloc
from shepherd.silos.flare import kits, known_sites, message, tls
from shepherd.silos.flare.job import ORDER, PAYLOAD, TASK
from shepherd.silos.flare.kit_identity import KitDirectory
from shepherd.silos.flare.patches.server_job import outlive_updates
from shepherd.silos.protocol import jobspec, wire
from shepherd.silos.server import run_status, trusted_modules
from shepherd.silos.server.server_run import ServerRun
from shepherd.silos.server.site_federation import Until

TOPIC = "shepherd"
HOME = "shepherd"
SUBMITTER = "submitter"
"""A file of the run's folder: the name of the administrator who submitted its first job."""
LINGER_S = 120.0
"""How long a finished job waits for the coordinator to fetch its results, which stay at the server."""
SUCCESSOR_S = 20.0
"""How long to wait for another job, if a site that was connected at submission is missing in this one."""
AWAY_S = 60.0
"""Ignore the coordinator's list of absent sites once it is this old."""
RELEASE_S = 2.0
"""How long FLARE may take to release an ended task; it checks every 0.05 s."""
TICK_S = 0.05


class StatusSource(Protocol):
    """A source of status for the coordinator."""

    def snapshot(self, asked: Mapping[str, Any]) -> dict[str, Any]: ...


class Stopped(FederationError):
    """The job was stopped from outside."""


class Rounds(ModelController):  # type: ignore[misc]
    """FLARE controller that runs the rounds of one run, from where its last job stopped."""

    def __init__(self) -> None:
        super().__init__(persistor_id="", ignore_result_error=True, task_check_period=0.05)
        self._away: frozenset[str] = frozenset()
        self._unawaited: frozenset[str] = frozenset()
        self._last_contact = 0.0  # from the coordinator, on the monotonic clock
        self._scheduled: list[Task] = []
        self._kept: list[tuple[queue.Queue[FLModel], list[Task]]] = []

    def run(self) -> None:
        """Run the whole job; called by FLARE."""
        workspace = self.engine.get_workspace()
        job = self.fl_ctx.get_job_id()
        brought = Path(workspace.get_app_config_dir(job)) / PAYLOAD
        meta = Path(workspace.get_job_meta_path(job))
        try:
            served = self._server_run(brought, meta, Path(workspace.get_root_dir()))
        except ShepherdError as error:  # reported to the coordinator, since another job would fail as well
            self.engine.register_app_command(TOPIC, self._on_command, run_status.failed_status(error))
        else:
            self.engine.register_app_command(TOPIC, self._on_command, served)
            outlive_updates()
            self._await_successor(served.order.sites)
            if not self.abort_signal.triggered:
                served.run()
        self._linger()

    def _server_run(self, brought: Path, meta: Path, kit: Path) -> ServerRun:
        # FLARE overwrites whatever a submitted job says of its submitter
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
            directory=lambda: KitDirectory(kits.read(kit, "server")),
        )
        served.require_sound()
        _require_same_submitter(served.home, submitted["submitter_name"], submitted["submitter_role"])
        return served

    def present(self) -> Sequence[str]:
        """Names of the sites of this job that are connected."""
        names = {client.name for client in self.engine.get_clients()}
        return sorted(name for name in names if not self._is_away(name))

    def ask(self, message_: bytes, sites: Sequence[str], seconds: float) -> Iterator[tuple[str, bytes]]:
        """Send to the sites; yield answers as they come; see `site_federation.Transport`."""
        yield from self._ask([(message_, sites)], seconds, Until(time.monotonic() + seconds))

    def ask_each(self, messages: Mapping[str, bytes], seconds: float) -> Iterator[tuple[str, bytes]]:
        """Send each site its own message; yield answers as they come."""
        own = [(message_, [site]) for site, message_ in messages.items()]
        yield from self._ask(own, seconds, Until(time.monotonic() + seconds))

    def ask_until(
        self, message_: bytes, sites: Sequence[str], until: Until, keep: bool
    ) -> Iterator[tuple[str, bytes]]:
        """Like `ask`, to an end that the caller may bring forward; see `site_federation.Transport`."""
        yield from self._ask([(message_, sites)], until.at - time.monotonic(), until, keep)

    def late(self) -> Iterator[tuple[str, bytes]]:
        """The answers that have come since to tasks that were kept; does not wait."""
        for inbox, tasks in list(self._kept):
            over = not _stand(tasks)  # before its inbox: an answer is put there before its task ends
            with suppress(queue.Empty):
                while True:
                    came = inbox.get_nowait()
                    yield came.meta["client_name"], _bytes(came)
                    del came
            if over:
                self._kept.remove((inbox, tasks))

    def broadcast(self, task: Task, *given: Any, **more: Any) -> None:
        """Schedule a task; `send_model` calls it, and does not tell which task it has made."""
        self._scheduled.append(task)
        super().broadcast(task, *given, **more)

    def _ask(
        self,
        messages: Sequence[tuple[bytes, Sequence[str]]],
        seconds: float,
        until: Until,
        keep: bool = False,
    ) -> Iterator[tuple[str, bytes]]:
        malloc.release_free_memory()  # so that the peak is that of one wave
        inbox: queue.Queue[FLModel] = queue.Queue()
        self._scheduled = []
        for message_, sites in messages:
            self.send_model(
                task_name=TASK,
                data=message.wrapped(message_),
                targets=list(sites),
                timeout=math.ceil(seconds) + 1,
                callback=inbox.put,
            )
        unanswered, tasks = {site for _, sites in messages for site in sites}, self._scheduled
        try:
            yield from self._answers(inbox, unanswered, tasks, until)
        finally:  # also if the caller stops early
            if keep and unanswered:
                self._kept.append((inbox, tasks))
            else:
                self._release(tasks)

    def _answers(
        self, inbox: queue.Queue[FLModel], unanswered: set[str], tasks: Sequence[Task], until: Until
    ) -> Iterator[tuple[str, bytes]]:
        """Yield answers as they arrive, and remove their sites from `unanswered`."""
        waiting = set(unanswered)  # an answer of a site that has left may still arrive
        while waiting:
            # checked before the inbox: an answer is put there before its task ends
            over = time.monotonic() > until.at or not _stand(tasks)
            came = self._next(inbox, until.at)
            if came is not None and (site := came.meta["client_name"]) in unanswered:
                unanswered.discard(site)
                waiting.discard(site)
                answer, came = _bytes(came), None  # free its arrays while the caller works
                yield site, answer
                del answer
            elif came is None and over:
                break
            else:
                waiting = {site for site in waiting if not self._is_away(site)}

    def _release(self, tasks: Sequence[Task]) -> None:
        """End tasks, and wait until FLARE has freed their message: the next one is as large."""
        for task in tasks:
            if task.is_standing:
                self.cancel_task(task, fl_ctx=self.fl_ctx)
        ends = time.monotonic() + RELEASE_S
        while _stand(tasks) and time.monotonic() < ends:
            time.sleep(TICK_S)

    def process_result_of_unknown_task(
        self, client: Client, task_name: str, client_task_id: str, result: Shareable, fl_ctx: FLContext
    ) -> None:
        """Drop an answer to a task that has ended; called by FLARE."""
        self.log_warning(fl_ctx, f"dropped a late answer of {client.name}")

    def _next(self, inbox: queue.Queue[FLModel], ends: float) -> FLModel | None:
        if self.abort_signal.triggered:
            raise Stopped("the job was stopped; continue the run with `shepherd resume`")
        try:
            return inbox.get(timeout=max(0.0, min(TICK_S, ends - time.monotonic())))
        except queue.Empty:
            return None

    def _is_away(self, site: str) -> bool:
        away = self._away if time.monotonic() - self._last_contact < AWAY_S else ()
        return site in away or self.get_client_disconnect_time(site) is not None

    def _on_command(self, topic: str, asked: Any, fl_ctx: FLContext, served: StatusSource) -> dict[str, Any]:
        """Answer a command of the coordinator; called by FLARE."""
        asked = asked if isinstance(asked, dict) else {}
        if "away" in asked or "state" in asked:  # a mere observer sends neither
            self._last_contact = time.monotonic()
        if "away" in asked:  # a request for a checkpoint has no list
            self._away = frozenset(asked["away"])
        if "unawaited" in asked:
            self._unawaited = frozenset(asked["unawaited"])
        return {**served.snapshot(asked), "present": list(self.present())}

    def _await_successor(self, sites: Sequence[str]) -> None:
        """Wait while the coordinator may still replace this job by one in which all sites take part.

        FLARE lets no site into a job that has started, so a site that restarts just then would miss rounds.
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


def _stand(tasks: Sequence[Task]) -> bool:
    """Whether FLARE still waits for an answer to one of these tasks."""
    return any(task.is_standing for task in tasks)


def _bytes(model: FLModel) -> bytes:
    try:
        return message.unwrapped(model)
    except WireError:
        return b""  # counted as an unreadable reply


def _require_same_version(version: str) -> None:
    mine = wire.version()
    if mine != version:
        raise FederationError(
            f"the run was submitted by shepherd-fit {version} and this server has {mine}; install the"
            " same version"
        )


def _require_member(kit: Path, name: str) -> None:
    """Raise FederationError where the administrator was removed, as while the job waited for its turn."""
    if name in tls.Removed(kit / tls.REMOVED):
        raise FederationError(f"{name} was removed from the federation; use the kit of another administrator")


def _require_same_submitter(home: Path, name: str, role: str) -> None:
    """Raise FederationError if another administrator started the run, unless this is a project_admin."""
    first = _first_submitter(home, name)
    if first != name and role != "project_admin":
        raise FederationError(
            f"the run belongs to {first}, and {name} is {role}, who may only continue their own runs;"
            " use the kit"
            f" of {first} or of a project_admin"
        )


def _first_submitter(home: Path, name: str) -> str:
    """The administrator who submitted the first job of the run in `home`; recorded as `name` if new."""
    kept = home / SUBMITTER
    with disk_errors(home):
        home.mkdir(parents=True, exist_ok=True)
        if not kept.exists():
            mine = write_atomic(home / f"{SUBMITTER}-{os.getpid()}", name)
            mine.chmod(0o600)
            with suppress(FileExistsError):  # written whole, and by only one of two that start at once
                os.link(mine, kept)
            mine.unlink()
        return kept.read_text(encoding="utf8")
