"""Follow a run at the server to its end: submit its job, poll its status, and submit another if it dies.

A new job is the one remedy for everything that ends a job (a dead process or host at the server or a site)
and for what a job cannot repair itself (FLARE does not let a site rejoin a job). It continues after the last
finished round and repeats the open one; sites that had answered it give the same answer.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from shepherd.errors import FederationError, OutOfReach, ShepherdError
from shepherd.run import checkpoint
from shepherd.settings import SilosTable
from shepherd.silos.coordinator import status_update
from shepherd.silos.coordinator.status_update import JobStatus
from shepherd.silos.flare import job as jobs
from shepherd.silos.flare.probe import HangUpCounter, HungUp
from shepherd.silos.flare.session import JobGone, JobSilent, Quiet, Session, Work, session
from shepherd.silos.protocol.jobspec import JobSpec

Row = dict[str, Any]
POLL_S = 0.25
"""Pause between two requests for the job's status."""
ABSENCE_CHECK_S = 3.0
"""Pause between two checks of which sites work on the job, while one is missing."""
LONG_ROUND_S = 10.0
"""Duration of a round after which the sites are checked even if none is known to be missing."""
RESTART_PAUSE_S, MAX_RESTART_PAUSE_S = 30.0, 900.0
"""Pause between two new jobs on behalf of the same site; doubled while the site does not join."""
RETRY_PAUSE_S, MAX_RETRY_PAUSE_S = 1.0, 30.0
"""Pause before an unreachable server is tried again; doubled with each attempt."""
STATUS_ONLY: Row = {"rows": 2**31, "said": 2**31}
"""Status request that is answered without log rows and messages."""
WAITING = ("SUBMITTED", "APPROVED", "DISPATCHED")
"""FLARE's states of a job that has not started yet."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StatusUpdate:
    """What has changed at the server since the last update."""

    job: str
    """Id of the job."""
    restart: bool = False
    """Whether this is the first update of a newly submitted job."""
    round: int = 0
    """Number of finished rounds at the server."""
    count: int = 0
    """Rows in the server's log: rounds 0 to count - 1."""
    rows: Sequence[Row] = ()
    """New rows of the server's log."""
    said: Sequence[str] = ()
    """New messages of the server."""
    progress: Row | None = None
    outcome: Row | None = None
    fetch: Callable[[int], Iterator[tuple[str, bytes]]] | None = None
    """Fetch a round's checkpoint: pieces as (file name, bytes), in order."""


@dataclass(slots=True, kw_only=True)
class JobFollower:
    """Follows a run at the server through all its jobs."""

    kit: Path
    order: JobSpec
    cohort: int
    """Average number of sites in a round."""
    state: Callable[[], Path]
    """Returns the last checkpoint in the run folder, which a new job brings along."""
    scratch: Path
    """Temporary folder for a job's files, removed once the server has them."""
    echo: Callable[[str], None]
    stopped: Callable[[], bool] = lambda: False
    """Returns whether a person has stopped the run."""
    max_file_bytes: int = 2**32
    """Largest file of a checkpoint that is accepted from the server."""
    rows: int = 0
    """Rows of the server's log that are known here already."""
    job: str | None = None
    """Id of the last submitted job."""
    outdated: bool = False
    """Whether that job has another order, so that a job with this order has to replace it."""
    most_rounds: int = 0
    """The most rounds that the run was ever asked for; a server that says more of them is not believed."""
    again: bool = False
    """Set by the consumer to have the last update delivered again."""
    _submitted_here: bool = False
    """Whether this object submitted the job."""
    _must_replace: bool = False
    """Whether another job has to replace this one."""
    _messages_seen: int = 0
    _deaths: int = 0
    _restarted: dict[str, float] = field(default_factory=dict)
    """Site -> when a job was last started on its behalf."""
    _pauses: dict[str, float] = field(default_factory=dict)
    """Site -> pause in seconds before the next such job, while the site does not join."""
    _absent: dict[str, float] = field(default_factory=dict)
    """Site that does not respond to the server -> since when."""
    _waits: SilosTable = field(init=False)
    _undisclosed: set[str] = field(default_factory=set)
    """Sites that do not disclose to this administrator what they work on."""
    _given_up_sites: set[str] = field(default_factory=set)
    """Sites that did not connect although they were waited for before the job was submitted."""

    def __post_init__(self) -> None:
        self._waits = self.order.silos

    def news(self) -> Generator[StatusUpdate, None, None]:
        """Yield status updates until the run has ended, submitting jobs as needed.

        If the consumer stops iterating, the server continues the job that it has.

        Raises:
            SilosError: the server refuses this kit or the job.
            FederationError: jobs die repeatedly, or a person has stopped the run.
        """
        pause, met, complaint, hang_ups = RETRY_PAUSE_S, False, "", HangUpCounter()
        while True:
            try:
                with session(self.kit) as server:
                    met = True
                    hang_ups.succeeded()
                    for news in self._follow_jobs(server):
                        pause, complaint = RETRY_PAUSE_S, ""
                        yield news
                return
            except (OutOfReach, HungUp) as error:
                hang_ups.failed(error)
                if not met:  # a wrong kit, or a server that was never started: the person is there to fix it
                    raise
                if str(error) != complaint:
                    complaint = str(error)
                    self.echo(f"{complaint}; trying again")
                self._require_not_stopped()
                time.sleep(pause)
                pause = min(MAX_RETRY_PAUSE_S, 2 * pause)

    def withdraw(self) -> bool:
        """End the last job; returns whether none is left, which nobody knows if the server is away."""
        if self.job is None:
            return True
        try:
            with session(self.kit) as server:
                _abort(server, self.job)
        except ShepherdError:
            return False
        return True

    def _follow_jobs(self, server: Session) -> Iterator[StatusUpdate]:
        """Updates of one job after another, until one has a final outcome that the consumer has accepted."""
        while True:
            if self.outdated or self._must_replace or self.job is None or not _is_alive(server, self.job):
                yield self._submit_job(server)
            assert self.job is not None
            for news in self._follow_job(server, self.job):
                self.again = False
                yield news
                if news.outcome and not self.again:
                    with suppress(
                        OutOfReach
                    ):  # it would wait for further requests, and has nothing more to report
                        server.abort(self.job)
                    return
            self._must_replace = True
            self._count_death()

    def _submit_job(self, server: Session) -> StatusUpdate:
        """Submit a job, after ending the last one so that it neither answers nor holds the run's lock."""
        self._require_not_stopped()
        if self.job is not None:
            _abort(server, self.job)
        self._wait_for_sites(server)
        order = replace(self.order, released=max(0, self.rows - 1))
        try:
            self.job = server.submit(jobs.write(self.scratch, order, self.state(), self.cohort))
        finally:
            shutil.rmtree(self.scratch, ignore_errors=True)  # it holds a copy of the checkpoint
        self._submitted_here, self._must_replace, self.outdated, self._messages_seen = True, False, False, 0
        return StatusUpdate(job=self.job, restart=True, round=max(0, self.rows - 1), count=self.rows)

    def _count_death(self) -> None:
        self._deaths += 1
        if self._deaths > self._waits.max_deaths:
            raise FederationError(
                f"{self._waits.max_deaths} jobs in a row died without finishing a round; read the logs of the"
                " server and the sites, then resume the run"
            )

    def _require_not_stopped(self) -> None:
        if self.stopped():
            raise FederationError(
                "the run was stopped by `shepherd silos stop`; continue it with `shepherd resume`"
            )

    def _follow_job(self, server: Session, job: str) -> Iterator[StatusUpdate]:
        """Updates of one job, until it has ended or has to be replaced by another."""
        heard = looked = round_began = time.monotonic()
        first = True
        while True:
            if self.stopped():  # the job may have been submitted after the run was stopped
                _abort(server, job)
            self._require_not_stopped()
            status = self._ask_status(server, job)
            now = time.monotonic()
            if status is None:
                if now - heard > (self._waits.start_s if first else self._waits.silence_s) or ended(
                    server, job
                ):
                    return
            elif status.opened or status.outcome:
                if self._failed_before(status) or self._began_too_early(server, job, status):
                    return
                heard = now
                if status.rows:
                    self._deaths, round_began = 0, now
                yield self._status_update(server, job, status)
                first = False
                self._messages_seen += len(status.said)
            missing = status is not None and len(status.present) < len(self.order.sites)
            if (missing or now - round_began > LONG_ROUND_S) and now - looked > ABSENCE_CHECK_S:
                working = server.working()
                looked = time.monotonic()
                heard += looked - now  # sites that do not respond delay this check; the job is not to blame
                if back := self._returned_sites(working, job):
                    self.echo(f"{', '.join(back)} reconnected: a new job repeats the round")
                    self._deaths -= 1  # not a death of the job
                    return
            time.sleep(POLL_S)

    @property
    def _rounds(self) -> int:
        return self.order.federation.rounds

    def _failed_before(self, status: JobStatus) -> bool:
        """Whether a job that was found at the server had ended in an error, which may be fixed by now."""
        return not self._submitted_here and "error" in (status.outcome or {})

    def _began_too_early(self, server: Session, job: str, status: JobStatus) -> bool:
        """Whether a job missed its quorum because of sites that are connected now, or soon."""
        lacking = (status.outcome or {}).get("kind") == "QuorumNotMet"
        if not lacking or set(self.order.sites) <= set(status.present):
            return False
        ends = time.monotonic() + self._waits.return_s
        while not (back := self._idle_sites(server.working(), job)) and time.monotonic() < ends:
            time.sleep(1.0)
        if back:
            self.echo(f"{_join_names(back)} connected too late for the round: a new job repeats it")
        return bool(back)

    def _ask_status(self, server: Session, job: str) -> JobStatus | None:
        asked = {
            "rows": self.rows,
            "said": self._messages_seen,
            "away": self._away_sites(),
            "unawaited": sorted(self._given_up_sites),
        }
        try:
            return status_update.parse_status(
                server.ask_job(job, asked), self._rounds, self.rows, self.most_rounds
            )
        except (JobGone, JobSilent):
            return None

    def _status_update(self, server: Session, job: str, status: JobStatus) -> StatusUpdate:
        # a job that ended before it had read the run's log does not know its rounds
        known = (status.round, status.count) if status.opened else (max(0, self.rows - 1), self.rows)
        return StatusUpdate(
            job=job,
            round=known[0],
            count=known[1],
            rows=status.rows,
            said=status.said if self._messages_seen < status_update.MAX_MESSAGES else (),
            progress=status.progress,
            outcome=_final_outcome(status.outcome),
            fetch=lambda round: _checkpoint_pieces(server, job, round, self.max_file_bytes),
        )

    def _returned_sites(self, working: Mapping[str, Work], job: str) -> list[str]:
        """The sites on whose behalf a new job is due; also records which sites do not respond."""
        now = time.monotonic()
        gone = {site for site in self.order.sites if working.get(site, Quiet.SILENT) is Quiet.SILENT}
        self._absent = {site: self._absent.get(site, now) for site in gone}
        self._report_undisclosed(working)
        idle, back = self._idle_sites(working, job), []
        for site in sorted(set(self.order.sites) - gone):
            if site not in idle:
                self._pauses.pop(site, None)
            elif now - self._restarted.get(site, -MAX_RESTART_PAUSE_S) >= self._pauses.get(
                site, RESTART_PAUSE_S
            ):
                back.append(site)
                self._restarted[site] = now
                self._pauses[site] = min(MAX_RESTART_PAUSE_S, 2 * self._pauses.get(site, RESTART_PAUSE_S / 2))
        return back

    def _report_undisclosed(self, working: Mapping[str, Work]) -> None:
        """Report once which sites do not disclose whether they are idle: no job is restarted for them."""
        unwilling = {site for site in self.order.sites if working.get(site) is Quiet.UNWILLING}
        if new := unwilling - self._undisclosed:
            self.echo(
                f"{_join_names(new)} does not disclose what it works on, so if it drops out it is not waited"
                " for"
            )
        self._undisclosed = unwilling

    def _idle_sites(self, working: Mapping[str, Work], job: str) -> list[str]:
        """The run's sites that respond to the server and do not work on its job."""
        answering = {site: jobs for site, jobs in working.items() if isinstance(jobs, frozenset)}
        return [site for site in sorted(self.order.sites) if job not in answering.get(site, {job})]

    def _away_sites(self) -> list[str]:
        now = time.monotonic()
        return sorted(site for site, since in self._absent.items() if now - since > self._waits.grace_s)

    def _wait_for_sites(self, server: Session) -> None:
        ends = time.monotonic() + self._waits.assembly_s
        printed = ""
        while missing := set(self.order.sites) - (connected := set(server.connected())):
            self._require_not_stopped()
            enough = len(self.order.sites) - len(missing) >= jobs.quorum(self.order, self.cohort)
            if time.monotonic() > ends and enough:
                self.echo(f"starting without {_join_names(missing)}")
                self._given_up_sites = missing
                return
            there = _join_names(connected) or "none"
            line = f"waiting for {_join_names(missing)} to connect; connected: {there}"
            if line != printed:
                self.echo(line)
                printed = line
            time.sleep(1.0)
        self._given_up_sites = set()


def _join_names(names: Iterable[str]) -> str:
    return ", ".join(sorted(names))


def _final_outcome(outcome: Row | None) -> Row | None:
    """The outcome, unless another job could change it."""
    return None if outcome and outcome.get("kind") == "Stopped" else outcome


def _is_alive(server: Session, job: str) -> bool:
    # the record of a job that died with its server may say RUNNING for ever
    return job in server.jobs() or _job_status(server, job) in WAITING


def ended(server: Session, job: str) -> bool:
    """Whether a job has ended, or the server has no record of it."""
    return _job_status(server, job).startswith("FINISHED")


def _job_status(server: Session, job: str) -> str:
    try:
        return server.status(job)
    except JobGone:
        return "FINISHED:FORGOTTEN"


def _abort(server: Session, job: str) -> None:
    try:
        server.abort(job)
    except OutOfReach:  # also raised for a job that does not run
        if job in server.jobs():
            raise


def _checkpoint_pieces(server: Session, job: str, round: int, most: int) -> Iterator[tuple[str, bytes]]:
    for name in checkpoint.FILES:
        offset, size = 0, 1
        while offset < size:
            piece_request = {"round": round, "file": name, "offset": offset}
            part = status_update.parse_piece(
                server.ask_job(job, {**STATUS_ONLY, "state": piece_request}), offset, most
            )
            data, size = part if part else (b"", size)
            if not data and size:
                raise FederationError(
                    f"the server has no complete checkpoint of round {round}; resume the run"
                )
            offset += len(data)
            yield name, data
