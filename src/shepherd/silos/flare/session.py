"""What an administrator can do at FLARE's server, in our words and with our errors."""

from __future__ import annotations

import io
import logging
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from enum import Enum
from pathlib import Path
from typing import Any

from nvflare.apis.fl_exception import FLCommunicationError
from nvflare.apis.job_def import JobMetaKey, is_valid_job_id
from nvflare.fuel.flare_api import api_spec
from nvflare.fuel.flare_api.flare_api import Session as FlareSession
from nvflare.fuel.flare_api.flare_api import new_secure_session
from nvflare.fuel.hci.proto import MetaStatusValue

from shepherd.errors import OutOfReach, SilosError
from shepherd.silos.flare import controller, kits, probe, tls
from shepherd.silos.flare.job import run_of
from shepherd.silos.flare.kits import Kit
from shepherd.silos.protocol import schema

PATIENCE = 2.0
"""Seconds in which a site says what it works on, once one has been silent."""
_SILENT = logging.NullHandler()
_GONE = (
    api_spec.NoConnection,
    api_spec.SessionClosed,  # and expired
    api_spec.InternalError,
    FLCommunicationError,
    RuntimeError,
    OSError,
)
_FLARES = (
    api_spec.JobNotRunning,
    api_spec.JobNotFound,
    api_spec.AuthorizationError,
    api_spec.AuthenticationError,
    api_spec.InvalidJobDefinition,
    api_spec.NoReply,
    api_spec.InvalidTarget,
    api_spec.NoClientsAvailable,
    *_GONE,
)


class Quiet(Enum):
    """Why a registered site does not say what it works on."""

    SILENT = "registered, gives no answer"
    UNWILLING = "registered, does not tell this administrator what it does"


Work = frozenset[str] | Quiet
"""The jobs that a site works on, or why it does not say."""


class JobGone(SilosError):
    """The job runs no more."""


class NotAllowed(SilosError):
    """The administrator's role has no right to this, or not for this job."""


class JobSilent(OutOfReach):
    """The job's process is there and gives no answer: it is beginning, ending, or stuck."""


class Session:
    """An administrator's login at the server; use `session(...)`, since one left open keeps Python alive."""

    def __init__(self, kit: Kit, flare: FlareSession) -> None:
        self.kit = kit
        self._flare = flare

    def connected(self) -> list[str]:
        """Names of the sites that are connected now."""
        with _our_words(self.kit):
            clients = self._flare.get_connected_client_list()
        return sorted(schema.sentence(str(client.name))[: schema.MAX_NAME_CHARS] for client in clients)

    def working(self) -> dict[str, Work]:
        """For each site that is registered, the jobs whose process runs there, or why that is not known."""
        sites = self.connected()
        if not sites:
            return {}
        try:
            return self._working()
        except OutOfReach:  # FLARE's server waits longer for a silent site than we do for the server
            sites = self.connected()
        self._flare.set_timeout(PATIENCE)
        try:
            return {site: jobs for each in sites for site, jobs in self._working_alone(each).items()}
        finally:
            self._flare.unset_timeout()

    def _working_alone(self, site: str) -> dict[str, Work]:
        try:
            return self._working(site)
        except OutOfReach:
            return {site: Quiet.SILENT}

    def _working(self, *sites: str) -> dict[str, Work]:
        with _our_words(self.kit):
            try:
                rows = self._flare.get_client_job_status(list(sites)) or []
            except (api_spec.NoClientsAvailable, api_spec.InvalidTarget):  # the last has just left
                rows = []
        found: dict[str, Work] = {}
        for row in rows:
            site = row["client_name"]
            found[site] = _work(row, found.get(site))
        return found

    def jobs(self) -> set[str]:
        """The ids of the jobs that run now."""
        with _our_words(self.kit):
            return {job.job_id for job in self._flare.get_system_info().job_info}

    def run(self, job: str) -> str:
        """The id of the run that a job goes on with; the job's own, where it is no job of ours.

        Raises:
            JobGone: the server has forgotten the job.
        """
        with _our_words(self.kit):
            return run_of(self._flare.get_job_meta(job).get(JobMetaKey.JOB_NAME.value)) or job

    def submit(self, folder: Path) -> str:
        """Submit a job folder; give the job's id. What is interrupted may leave a copy beside the folder.

        Raises:
            SilosError: this administrator's role may not submit, or the server refuses the job.
        """
        with _our_words(self.kit), _temporary_in(folder.absolute().parent):
            return str(self._flare.submit_job(str(folder.absolute())))

    def told(self, job: str, asked: Mapping[str, Any]) -> dict[str, Any]:
        """What a running job of ours answers.

        Raises:
            JobGone: it does not run (yet, or any more).
            JobSilent: it gives no answer now.
        """
        with _our_words(self.kit):
            try:
                answer = self._flare.do_app_command(job, controller.TOPIC, dict(asked))
            except api_spec.InternalError as error:  # its process has not yet said what it listens to
                raise api_spec.NoReply(str(error)) from error
            if not answer or not isinstance(answer, dict):
                raise api_spec.NoReply("it answered nothing")
            return answer

    def status(self, job: str) -> str:
        """FLARE's word for the state of a job, such as RUNNING or FINISHED:COMPLETED."""
        with _our_words(self.kit):
            return str(self._flare.get_job_status(job))

    def abort(self, job: str) -> None:
        """End a job, whatever state it is in."""
        try:
            with _our_words(self.kit):
                self._flare.abort_job(job)
        except JobGone:
            pass

    def jobs_of(self, admin: str) -> dict[str, tuple[str, bool]]:
        """An administrator's jobs in the server's records, as (the run's id, whether it is over)."""
        with _our_words(self.kit):
            records = self._flare.list_jobs(detailed=True)
        mine = [record for record in records if record.get(JobMetaKey.SUBMITTER_NAME.value) == admin]
        return {str(record[JobMetaKey.JOB_ID.value]): _run_and_end(record) for record in mine}

    def disable(self, name: str) -> None:
        """Throw a site or an administrator out, and let nobody in with that kit any more."""
        with _our_words(self.kit):
            self._flare.disable_client(name)


@contextmanager
def session(folder: str | Path, timeout: float = 15.0) -> Iterator[Session]:
    """Log in with an administrator's kit.

    Raises:
        SilosError: it is no administrator's kit, or the server refuses it.
        OutOfReach: the server does not answer.
    """
    kit = kits.read(folder, "admin")
    logging.getLogger().addHandler(_SILENT)  # what FLARE would print on a lost connection, we say
    probe.reach(kit, timeout)
    tls.hold_to_server()
    with _our_words(kit), redirect_stdout(io.StringIO()):  # it says that it connects
        flare = new_secure_session(kit.name, str(kit.folder), timeout=timeout, auto_login_max_tries=1)
    try:
        yield Session(kit, flare)
    finally:
        _close(flare)


def _close(flare: FlareSession) -> None:
    try:
        flare.close()
    except Exception:  # its server may be gone; the threads must end all the same
        flare.api.close()


def _run_and_end(record: Mapping[str, Any]) -> tuple[str, bool]:
    run = run_of(record.get(JobMetaKey.JOB_NAME.value)) or schema.sentence(
        str(record[JobMetaKey.JOB_ID.value])
    )
    return run, str(record.get(JobMetaKey.STATUS.value, "")).startswith("FINISHED")


def _work(row: Mapping[str, Any], before: Work | None) -> Work:
    if row.get("status") == MetaStatusValue.NO_REPLY:
        return Quiet.SILENT
    if row.get("status") == MetaStatusValue.ERROR:  # as where its owner grants this administrator nothing
        return Quiet.UNWILLING
    job = row.get("job_id")
    if job is not None and not is_valid_job_id(job):  # a site may say anything
        return Quiet.UNWILLING
    known = before if isinstance(before, frozenset) else frozenset[str]()
    return known | ({job} if job else set())


@contextmanager
def _temporary_in(folder: Path) -> Iterator[None]:
    """Have FLARE pack what it sends here, and not where all users of the machine can read it."""
    before = tempfile.tempdir
    tempfile.tempdir = str(folder)
    try:
        yield
    finally:
        tempfile.tempdir = before


@contextmanager
def _our_words(kit: Kit) -> Iterator[None]:
    try:
        yield
    except _FLARES as error:
        raise _worded(kit, error) from error


def _worded(kit: Kit, error: Exception) -> SilosError:
    """FLARE's error in our words, with a line of the server's, which may be any."""
    said = schema.sentence(str(error))
    match error:
        case api_spec.JobNotRunning() | api_spec.JobNotFound():
            return JobGone(f"the job does not run at {kit.host} ({said}); resume the run")
        case api_spec.AuthorizationError():
            return NotAllowed(
                f"the server does not let {kit.name} do this ({said}); use the kit of a project_admin or lead"
            )
        case api_spec.AuthenticationError():
            return SilosError(f"the server refuses {kit.name} ({said}); ask for a new kit")
        case api_spec.InvalidJobDefinition():
            return SilosError(f"the server refuses the job ({said}); install the same version there")
        case api_spec.NoReply():
            return JobSilent(f"the run's process at {kit.host} gives no answer ({said}); wait for it")
        case api_spec.InvalidTarget() | api_spec.NoClientsAvailable():
            return SilosError(f"no such site is connected ({said}); look at `shepherd silos status`")
        case _:
            return OutOfReach(
                f"the server at {kit.host}:{kit.port} gave no answer ({said}); see that `shepherd silos"
                " server` runs there"
            )
