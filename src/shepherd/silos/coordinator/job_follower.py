"""Keep a run going at the server until it has ended: submit its job, hear its news, and begin anew.

One mechanism mends everything that ends a job (a dead process at the server or a site, a dead host) and
the one thing that a job cannot mend itself (FLARE lets no site back into a job): another job, that goes on
after the last finished round and asks the open one again; sites that had answered answer the same.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from shepherd.errors import FederationError, OutOfReach
from shepherd.run import checkpoint
from shepherd.settings import SilosTable
from shepherd.silos.coordinator import status_update
from shepherd.silos.coordinator.status_update import Told
from shepherd.silos.flare import job as jobs
from shepherd.silos.flare.probe import HungUp, Trials
from shepherd.silos.flare.session import JobGone, JobSilent, Quiet, Session, Work, session
from shepherd.silos.protocol.jobspec import JobSpec

Row = dict[str, Any]
POLL_S = 0.25
"""Between two questions for news."""
LOOK_S = 3.0
"""Between two looks at which sites work, while one is missing."""
LONG_ROUND_S = 10.0
"""Time of a round before it is asked whether all its sites still work."""
RESTART_PAUSE_S, MAX_RESTART_PAUSE_S = 30.0, 900.0
"""Between two jobs that begin for the sake of one and the same site; doubled while it stays out."""
RETRY_PAUSE_S, MAX_RETRY_PAUSE_S = 1.0, 30.0
"""Before a server that is out of reach is tried again; doubled with each try."""
NO_NEWS: Row = {"rows": 2**31, "said": 2**31}
"""What to ask a job that shall tell neither rows nor sentences."""
WAITING = ("SUBMITTED", "APPROVED", "DISPATCHED")
"""FLARE's words for a job that has yet to begin."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StatusUpdate:
    """What the server told since the last time."""

    job: str
    restart: bool = False
    """The first news of a job."""
    round: int = 0
    """Finished rounds at the server."""
    count: int = 0
    """Rows in the server's log: rounds 0 to count - 1."""
    rows: Sequence[Row] = ()
    said: Sequence[str] = ()
    progress: Row | None = None
    outcome: Row | None = None
    fetch: Callable[[int], Iterator[tuple[str, bytes]]] | None = None
    """Fetch a round's checkpoint: pieces as (file name, bytes), in order."""


@dataclass(slots=True, kw_only=True)
class JobFollower:
    """A run at the server. `rows` is how many rows of its log are known here already."""

    kit: Path
    order: JobSpec
    cohort: int
    """Sites that a round asks, on average."""
    state: Callable[[], Path]
    """The last checkpoint that is here, for the next job to bring along."""
    scratch: Path
    """A folder that is made for a job's folder, and removed once the server has it."""
    echo: Callable[[str], None]
    stopped: Callable[[], bool] = lambda: False
    """Whether a person has ended the run."""
    most_bytes: int = 2**32
    """Of a file of a checkpoint; the server's word for more is not taken."""
    rows: int = 0
    job: str | None = None
    """The last job that was submitted."""
    outdated: bool = False
    """Whether that job has another order, and makes room for one with this order."""
    again: bool = False
    """Set by who reads the news and could not take what the last one offered: then it is told again."""
    _mine: bool = False
    """Whether the job is one that this object began."""
    _over: bool = False
    """Whether the job has to make room for another."""
    _said: int = 0
    _deaths: int = 0
    _restarted: dict[str, float] = field(default_factory=dict)
    """When a job last began for the sake of a site."""
    _pauses: dict[str, float] = field(default_factory=dict)
    """Seconds until another may, while the site stays out."""
    _absent: dict[str, float] = field(default_factory=dict)
    """Sites that give the server no answer, and since when."""
    _waits: SilosTable = field(init=False)
    _unwilling: set[str] = field(default_factory=set)
    """Sites that do not tell this administrator what they work on."""
    _unawaited: set[str] = field(default_factory=set)
    """Sites that were waited for before the job was submitted, and did not come."""

    def __post_init__(self) -> None:
        self._waits = self.order.silos

    def news(self) -> Generator[StatusUpdate, None, None]:
        """News until the run has ended; whoever reads on keeps it alive.

        Who stops reading leaves the job to the server, which goes on with it.

        Raises:
            SilosError: the server refuses this kit or the job.
            FederationError: jobs die again and again, or a person has stopped the run.
        """
        pause, met, complaint, trials = RETRY_PAUSE_S, False, "", Trials()
        while True:
            try:
                with session(self.kit) as server:
                    met = True
                    trials.succeeded()
                    for news in self._jobs(server):
                        pause, complaint = RETRY_PAUSE_S, ""
                        yield news
                return
            except (OutOfReach, HungUp) as error:
                trials.failed(error)
                if not met:  # a wrong kit or a server that was never started: the person is there to see it
                    raise
                if str(error) != complaint:
                    complaint = str(error)
                    self.echo(f"{complaint}; trying again")
                self._require_wanted()
                time.sleep(pause)
                pause = min(MAX_RETRY_PAUSE_S, 2 * pause)

    def _jobs(self, server: Session) -> Iterator[StatusUpdate]:
        """News of one job after the other, until one has an outcome that is taken."""
        while True:
            if self.outdated or self._over or self.job is None or not _lives(server, self.job):
                yield self._begun(server)
            assert self.job is not None
            for news in self._told(server, self.job):
                self.again = False
                yield news
                if news.outcome and not self.again:
                    with suppress(OutOfReach):  # it would wait for us a while, and has nothing more to tell
                        server.abort(self.job)
                    return
            self._over = True
            self._died()

    def _begun(self, server: Session) -> StatusUpdate:
        """Submit a job. What is left of the last one must neither answer nor hold the run."""
        self._require_wanted()
        if self.job is not None:
            _end(server, self.job)
        self._await_sites(server)
        try:
            self.job = server.submit(jobs.write(self.scratch, self.order, self.state(), self.cohort))
        finally:
            shutil.rmtree(self.scratch, ignore_errors=True)  # it holds a copy of the checkpoint
        self._mine, self._over, self.outdated, self._said = True, False, False, 0
        return StatusUpdate(job=self.job, restart=True, round=max(0, self.rows - 1), count=self.rows)

    def _died(self) -> None:
        self._deaths += 1
        if self._deaths > self._waits.max_deaths:
            raise FederationError(
                f"{self._waits.max_deaths} jobs in a row died without a finished round; read the server's log"
                " and the sites', then resume the run"
            )

    def _require_wanted(self) -> None:
        if self.stopped():
            raise FederationError("the run was stopped by `shepherd silos stop`; resume it to go on")

    def _told(self, server: Session, job: str) -> Iterator[StatusUpdate]:
        """News of one job, until it runs no more or must make room for another."""
        heard = looked = round_began = time.monotonic()
        first = True
        while True:
            if self.stopped():  # the job may be younger than the word to stop
                _end(server, job)
            self._require_wanted()
            told = self._asked(server, job)
            now = time.monotonic()
            if told is None:
                if now - heard > (self._waits.start_s if first else self._waits.silence_s) or ended(
                    server, job
                ):
                    return
            elif told.opened or told.outcome:
                if self._failed_before(told) or self._began_too_early(server, job, told):
                    return
                heard = now
                if told.rows:
                    self._deaths, round_began = 0, now
                yield self._news(server, job, told)
                first = False
                self._said += len(told.said)
            missing = told is not None and len(told.present) < len(self.order.sites)
            if (missing or now - round_began > LONG_ROUND_S) and now - looked > LOOK_S:
                working = server.working()
                looked = time.monotonic()
                heard += looked - now  # silent sites keep it waiting, and the job is not to blame
                if back := self._back(working, job):
                    self.echo(f"{', '.join(back)} came back: a new job asks the round again")
                    self._deaths -= 1  # no death
                    return
            time.sleep(POLL_S)

    @property
    def _rounds(self) -> int:
        return self.order.federation.rounds

    def _failed_before(self, told: Told) -> bool:
        """Whether a job found at the server had ended in an error, which may be mended by now."""
        return not self._mine and "error" in (told.outcome or {})

    def _began_too_early(self, server: Session, job: str, told: Told) -> bool:
        """Whether a job lacked a quorum for want of sites that are there now, or in a moment."""
        lacking = (told.outcome or {}).get("kind") == "QuorumNotMet"
        if not lacking or set(self.order.sites) <= set(told.present):
            return False
        ends = time.monotonic() + self._waits.return_s
        while not (back := self._idle(server.working(), job)) and time.monotonic() < ends:
            time.sleep(1.0)
        if back:
            self.echo(f"{_listed(back)} came too late for the round: a new job asks it again")
        return bool(back)

    def _asked(self, server: Session, job: str) -> Told | None:
        asked = {
            "rows": self.rows,
            "said": self._said,
            "away": self._away(),
            "unawaited": sorted(self._unawaited),
        }
        try:
            return status_update.told(server.told(job, asked), self._rounds, self.rows)
        except (JobGone, JobSilent):
            return None

    def _news(self, server: Session, job: str, told: Told) -> StatusUpdate:
        # a job that ended before it had opened the run's log knows nothing of the rounds
        known = (told.round, told.count) if told.opened else (max(0, self.rows - 1), self.rows)
        return StatusUpdate(
            job=job,
            round=known[0],
            count=known[1],
            rows=told.rows,
            said=told.said if self._said < status_update.MOST_SAID else (),
            progress=told.progress,
            outcome=_final(told.outcome),
            fetch=lambda round: _pieces(server, job, round, self.most_bytes),
        )

    def _back(self, working: Mapping[str, Work], job: str) -> list[str]:
        """The run's sites that answer the server and do not work on its job; and note those that are gone."""
        now = time.monotonic()
        gone = {site for site in self.order.sites if working.get(site, Quiet.SILENT) is Quiet.SILENT}
        self._absent = {site: self._absent.get(site, now) for site in gone}
        self._tell_unwilling(working)
        idle, back = self._idle(working, job), []
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

    def _tell_unwilling(self, working: Mapping[str, Work]) -> None:
        """Say once which sites cannot be seen to be idle, and so are not asked again."""
        unwilling = {site for site in self.order.sites if working.get(site) is Quiet.UNWILLING}
        if new := unwilling - self._unwilling:
            self.echo(f"{_listed(new)} may not say what it works on, and is not waited for if it drops out")
        self._unwilling = unwilling

    def _idle(self, working: Mapping[str, Work], job: str) -> list[str]:
        """The run's sites that answer the server and do not work on its job."""
        answering = {site: jobs for site, jobs in working.items() if isinstance(jobs, frozenset)}
        return [site for site in sorted(self.order.sites) if job not in answering.get(site, {job})]

    def _away(self) -> list[str]:
        now = time.monotonic()
        return sorted(site for site, since in self._absent.items() if now - since > self._waits.grace_s)

    def _await_sites(self, server: Session) -> None:
        ends = time.monotonic() + self._waits.assembly_s
        told = ""
        while missing := set(self.order.sites) - (connected := set(server.connected())):
            self._require_wanted()
            enough = len(self.order.sites) - len(missing) >= jobs.quorum(self.order, self.cohort)
            if time.monotonic() > ends and enough:
                self.echo(f"beginning without {_listed(missing)}")
                self._unawaited = missing
                return
            line = f"waiting for {_listed(missing)} to connect; connected: {_listed(connected) or 'none'}"
            if line != told:
                self.echo(line)
                told = line
            time.sleep(1.0)
        self._unawaited = set()


def _listed(names: Iterable[str]) -> str:
    return ", ".join(sorted(names))


def _final(outcome: Row | None) -> Row | None:
    """An outcome that another job could not change."""
    return None if outcome and outcome.get("kind") == "Stopped" else outcome


def _lives(server: Session, job: str) -> bool:
    # a record may say RUNNING for ever of a job that died with its server
    return job in server.jobs() or _status(server, job) in WAITING


def ended(server: Session, job: str) -> bool:
    """Whether a job is over; also one that the server has forgotten."""
    return _status(server, job).startswith("FINISHED")


def _status(server: Session, job: str) -> str:
    try:
        return server.status(job)
    except JobGone:
        return "FINISHED:FORGOTTEN"


def _end(server: Session, job: str) -> None:
    try:
        server.abort(job)
    except OutOfReach:  # also said of a job that does not run
        if job in server.jobs():
            raise


def _pieces(server: Session, job: str, round: int, most: int) -> Iterator[tuple[str, bytes]]:
    for name in checkpoint.FILES:
        offset, size = 0, 1
        while offset < size:
            wanted = {"round": round, "file": name, "offset": offset}
            part = status_update.piece(server.told(job, {**NO_NEWS, "state": wanted}), offset, most)
            data, size = part if part else (b"", size)
            if not data and size:
                raise FederationError(f"the server has no whole checkpoint of round {round}; resume the run")
            offset += len(data)
            yield name, data
