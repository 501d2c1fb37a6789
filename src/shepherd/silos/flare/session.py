"""An administrator's session at FLARE's server, with our names and errors."""

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

SITE_TIMEOUT_S = 2.0
"""Time-out for asking one site which jobs it works on, once a site has been silent."""
_NULL_HANDLER = logging.NullHandler()
_CONNECTION_ERRORS = (
    api_spec.NoConnection,
    api_spec.SessionClosed,  # and expired
    api_spec.InternalError,
    FLCommunicationError,
    RuntimeError,
    OSError,
)
_FLARE_ERRORS = (
    api_spec.JobNotRunning,
    api_spec.JobNotFound,
    api_spec.AuthorizationError,
    api_spec.AuthenticationError,
    api_spec.InvalidJobDefinition,
    api_spec.NoReply,
    api_spec.InvalidTarget,
    api_spec.NoClientsAvailable,
    *_CONNECTION_ERRORS,
)


class Quiet(Enum):
    """Why it is unknown which jobs a registered site works on."""

    SILENT = "registered, gives no answer"
    UNWILLING = "registered, does not tell this administrator what it does"


Work = frozenset[str] | Quiet
"""Ids of the jobs that a site works on, or why they are unknown."""


class JobGone(SilosError):
    """The job is not running."""


class NotAllowed(SilosError):
    """The administrator's role does not permit this, or not for this job."""


class JobSilent(OutOfReach):
    """The job's process does not answer: it is starting, ending, or stuck."""


class Session:
    """An administrator's login at the server; use `session(...)`, since an open one keeps Python alive."""

    def __init__(self, kit: Kit, flare: FlareSession) -> None:
        self.kit = kit
        self._flare = flare

    def connected(self) -> list[str]:
        """Names of the connected sites."""
        with _flare_errors_as_ours(self.kit):
            clients = self._flare.get_connected_client_list()
        return sorted(schema.sentence(str(client.name))[: schema.MAX_NAME_CHARS] for client in clients)

    def working(self) -> dict[str, Work]:
        """Ids of the jobs whose process runs at each registered site, or why they are unknown."""
        sites = self.connected()
        if not sites:
            return {}
        try:
            return self._working()
        except OutOfReach:  # FLARE's server waits longer for a silent site than we do for the server
            sites = self.connected()
        self._flare.set_timeout(SITE_TIMEOUT_S)
        try:
            return {site: jobs for each in sites for site, jobs in self._working_or_silent(each).items()}
        finally:
            self._flare.unset_timeout()

    def _working_or_silent(self, site: str) -> dict[str, Work]:
        try:
            return self._working(site)
        except OutOfReach:
            return {site: Quiet.SILENT}

    def _working(self, *sites: str) -> dict[str, Work]:
        with _flare_errors_as_ours(self.kit):
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
        """Ids of the running jobs."""
        with _flare_errors_as_ours(self.kit):
            return {job.job_id for job in self._flare.get_system_info().job_info}

    def run(self, job: str) -> str:
        """Id of the run that a job continues; the job's own id, if it is no job of ours.

        Raises:
            JobGone: the server does not know the job.
        """
        with _flare_errors_as_ours(self.kit):
            return run_of(self._flare.get_job_meta(job).get(JobMetaKey.JOB_NAME.value)) or job

    def submit(self, folder: Path) -> str:
        """Submit a job folder and return the job's id; an interruption may leave a copy next to the folder.

        Raises:
            SilosError: this administrator's role may not submit, or the server refuses the job.
        """
        with _flare_errors_as_ours(self.kit), _temporary_in(folder.absolute().parent):
            return str(self._flare.submit_job(str(folder.absolute())))

    def ask_job(self, job: str, asked: Mapping[str, Any]) -> dict[str, Any]:
        """Send a request to a running job of ours and return its answer.

        Raises:
            JobGone: the job is not running (yet, or any more).
            JobSilent: the job does not answer now.
        """
        with _flare_errors_as_ours(self.kit):
            try:
                answer = self._flare.do_app_command(job, controller.TOPIC, dict(asked))
            except api_spec.InternalError as error:  # its process has not registered its commands yet
                raise api_spec.NoReply(str(error)) from error
            if not answer or not isinstance(answer, dict):
                raise api_spec.NoReply("it answered nothing")
            return answer

    def status(self, job: str) -> str:
        """FLARE's status of a job, such as RUNNING or FINISHED:COMPLETED."""
        with _flare_errors_as_ours(self.kit):
            return str(self._flare.get_job_status(job))

    def abort(self, job: str) -> None:
        """Stop a job in whatever state it is."""
        try:
            with _flare_errors_as_ours(self.kit):
                self._flare.abort_job(job)
        except JobGone:
            pass

    def jobs_of(self, admin: str) -> dict[str, tuple[str, bool]]:
        """An administrator's jobs in the server's records, by id, as (run id, whether finished)."""
        with _flare_errors_as_ours(self.kit):
            records = self._flare.list_jobs(detailed=True)
        mine = [record for record in records if record.get(JobMetaKey.SUBMITTER_NAME.value) == admin]
        return {str(record[JobMetaKey.JOB_ID.value]): _run_and_end(record) for record in mine}

    def disable(self, name: str) -> None:
        """Disconnect a site or an administrator, and refuse that kit from now on."""
        with _flare_errors_as_ours(self.kit):
            self._flare.disable_client(name)


@contextmanager
def session(folder: str | Path, timeout: float = 15.0) -> Iterator[Session]:
    """Log in with an administrator's kit.

    Raises:
        SilosError: the folder is no administrator's kit, or the server refuses it.
        OutOfReach: the server does not answer.
    """
    kit = kits.read(folder, "admin")
    logging.getLogger().addHandler(_NULL_HANDLER)  # our own errors report lost connections
    probe.reach(kit, timeout)
    tls.require_server_identity()
    with _flare_errors_as_ours(kit), redirect_stdout(io.StringIO()):  # it prints that it connects
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
    if job is not None and not is_valid_job_id(job):  # the site's answer is not trusted
        return Quiet.UNWILLING
    known = before if isinstance(before, frozenset) else frozenset[str]()
    return known | ({job} if job else set())


@contextmanager
def _temporary_in(folder: Path) -> Iterator[None]:
    """Have FLARE keep its temporary files in `folder`, not where all users can read them."""
    before = tempfile.tempdir
    tempfile.tempdir = str(folder)
    try:
        yield
    finally:
        tempfile.tempdir = before


@contextmanager
def _flare_errors_as_ours(kit: Kit) -> Iterator[None]:
    try:
        yield
    except _FLARE_ERRORS as error:
        raise _our_error(kit, error) from error


def _our_error(kit: Kit, error: Exception) -> SilosError:
    """Our error for an error of FLARE, with the server's own line, which may be any text."""
    said = schema.sentence(str(error))
    match error:
        case api_spec.JobNotRunning() | api_spec.JobNotFound():
            return JobGone(f"the job is not running at {kit.host} ({said}); resume the run")
        case api_spec.AuthorizationError():
            return NotAllowed(
                f"the server does not let {kit.name} do this ({said}); use the kit of a project_admin or lead"
            )
        case api_spec.AuthenticationError():
            return SilosError(f"the server refuses {kit.name} ({said}); ask for a new kit")
        case api_spec.InvalidJobDefinition():
            return SilosError(f"the server refuses the job ({said}); install the same version there")
        case api_spec.NoReply():
            return JobSilent(f"the run's process at {kit.host} does not answer ({said}); try again later")
        case api_spec.InvalidTarget() | api_spec.NoClientsAvailable():
            return SilosError(f"no such site is connected ({said}); see `shepherd silos status`")
        case _:
            return OutOfReach(
                f"the server at {kit.host}:{kit.port} did not answer ({said}); check that `shepherd silos"
                " server` is running there"
            )
