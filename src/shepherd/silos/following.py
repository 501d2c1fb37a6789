"""Keep a run going at the server until it has ended: submit its job, hear its news, and begin anew.

One mechanism mends everything that ends a job (a dead process at the server or a site, a dead host) and
the one thing that a job cannot mend itself (FLARE lets no site back into a job): another job, that goes on
after the last finished round and asks the open one again; sites that had answered answer the same.
"""

from __future__ import annotations

import base64
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from shepherd import checkpoint
from shepherd.errors import FederationError, OutOfReach
from shepherd.federation.nvflare import job as jobs
from shepherd.federation.nvflare.session import JobGone, JobSilent, Session, session
from shepherd.federation.service import Order

Row = dict[str, Any]
POLL = 0.25
"""Seconds between two questions for news."""
LOOK = 3.0
"""Seconds between two looks at which sites work, while one is missing."""
PATIENCE = 10.0
"""Seconds of a round before it is asked whether all its sites still work."""
ASSEMBLY = 30.0
"""Seconds to wait for the sites of a run before it begins without them."""
START = 90.0
"""Seconds in which a submitted job must begin."""
SILENCE = 20.0
"""Seconds without an answer after which a job that has begun is taken for dead."""
AGAIN = 30.0
"""Seconds between two jobs that begin for the sake of one and the same site."""
GRACE = 60.0
"""Seconds that a site may be gone before the round goes on without it; back by then, it is asked again."""
DEATHS = 12
"""Jobs in a row that may die without a finished round."""


@dataclass(frozen=True, slots=True, kw_only=True)
class News:
    """What the server told since the last time."""

    job: str
    restart: bool = False
    """The first news of a job."""
    round: int = 0
    """Finished rounds at the server."""
    count: int = 0
    """Rows in the server's log."""
    rows: Sequence[Row] = ()
    said: Sequence[str] = ()
    progress: Row | None = None
    outcome: Row | None = None
    fetch: Callable[[int], Iterator[tuple[str, bytes]]] | None = None
    """Fetch a round's checkpoint: pieces as (file name, bytes), in order."""


@dataclass(slots=True, kw_only=True)
class Following:
    """A run at the server. `rows` is how many rows of its log are known here already."""

    kit: Path
    order: Order
    state: Callable[[], Path]
    """The last checkpoint that is here, for the next job to bring along."""
    scratch: Path
    """A folder for job folders."""
    say: Callable[[str], None]
    rows: int = 0
    job: str | None = None
    """The last job that was submitted."""
    _said: int = 0
    _deaths: int = 0
    _restarted: dict[str, float] = field(default_factory=dict)
    _absent: dict[str, float] = field(default_factory=dict)
    """Sites that give the server no answer, and since when."""

    def news(self) -> Iterator[News]:
        """News until the run has ended; whoever reads on keeps it alive.

        Raises:
            SilosError: the server refuses this kit or the job.
            FederationError: jobs die again and again.
        """
        pause, met = 1.0, False
        while True:
            try:
                with session(self.kit) as server:
                    pause, met = 1.0, True
                    for news in self._one_job(server):
                        yield news
                        if news.outcome:
                            return
                self._died()
            except OutOfReach as error:
                if not met:  # a wrong kit or a server that was never started: the person is there to see it
                    raise
                self.say(f"{error}; trying again")
                time.sleep(pause)
                pause = min(30.0, 2 * pause)

    def _died(self) -> None:
        self._deaths += 1
        if self._deaths > DEATHS:
            raise FederationError(
                f"{DEATHS} jobs in a row died without a finished round; read the server's log and the sites',"
                " then resume the run"
            )

    def _one_job(self, server: Session) -> Iterator[News]:
        if self.job is None or self.job not in server.jobs():
            self._await_sites(server)
            self.job = server.submit(jobs.write(self.scratch, self.order, self.state()))
        self._said = 0
        try:
            yield from self._told(server, self.job)
        finally:
            # ends what is left of it, so that it neither answers nor counts among the server's jobs
            with suppress(OutOfReach):
                server.abort(self.job)

    def _told(self, server: Session, job: str) -> Iterator[News]:
        """News of one job, until it runs no more or must make room for another."""
        heard = looked = round_began = time.monotonic()
        first = True
        while True:
            told = self._asked(server, job)
            now = time.monotonic()
            if told is None:
                if now - heard > (START if first else SILENCE) or _ended(server, job):
                    return
            elif told["opened"] or told["outcome"]:
                heard = now
                if told["rows"]:
                    self._deaths, round_began = 0, now
                yield self._news(server, job, told, first)
                first = False
                self._said += len(told["said"])
            missing = told is not None and len(told["present"]) < len(self.order.sites)
            if (missing or now - round_began > PATIENCE) and now - looked > LOOK:
                looked = now
                if back := self._back(server.working(), job):
                    self.say(f"{', '.join(back)} came back: a new job asks the round again")
                    self._deaths -= 1  # no death
                    return
            time.sleep(POLL)

    def _asked(self, server: Session, job: str) -> Row | None:
        try:
            return server.told(job, {"rows": self.rows, "said": self._said, "away": self._away()})
        except (JobGone, JobSilent):
            return None

    def _news(self, server: Session, job: str, told: Mapping[str, Any], first: bool) -> News:
        return News(
            job=job,
            restart=first,
            round=told["round"],
            count=told["count"],
            rows=told["rows"],
            said=told["said"],
            progress=told["progress"],
            outcome=_final(told["outcome"]),
            fetch=lambda round: _pieces(server, job, round),
        )

    def _back(self, working: Mapping[str, frozenset[str] | None], job: str) -> list[str]:
        """The run's sites that answer the server and do not work on its job; and note those that are gone."""
        now = time.monotonic()
        there = {site for site, jobs in working.items() if jobs is not None}
        gone = set(self.order.sites) - there
        self._absent = {site: self._absent.get(site, now) for site in gone}
        back = [
            site
            for site in sorted(there & set(self.order.sites))
            if job not in (working[site] or ()) and now - self._restarted.get(site, -AGAIN) >= AGAIN
        ]
        self._restarted.update(dict.fromkeys(back, now))
        return back

    def _away(self) -> list[str]:
        now = time.monotonic()
        return sorted(site for site, since in self._absent.items() if now - since > GRACE)

    def _await_sites(self, server: Session) -> None:
        ends = time.monotonic() + ASSEMBLY
        told: set[str] = set()
        while missing := set(self.order.sites) - set(server.connected()):
            none_there = len(missing) == len(self.order.sites)
            if time.monotonic() > ends and not none_there:
                self.say(f"beginning without {', '.join(sorted(missing))}")
                return
            if missing != told:
                self.say(f"waiting for {', '.join(sorted(missing))} to connect")
                told = missing
            time.sleep(1.0)


def _final(outcome: Row | None) -> Row | None:
    """An outcome that another job could not change."""
    return None if outcome and outcome.get("kind") == "Stopped" else outcome


def _ended(server: Session, job: str) -> bool:
    return server.status(job).startswith("FINISHED")


def _pieces(server: Session, job: str, round: int) -> Iterator[tuple[str, bytes]]:
    for name in checkpoint.FILES:
        offset, size = 0, 1
        while offset < size:
            wanted = {"round": round, "file": name, "offset": offset}
            part = server.told(job, {"rows": 2**31, "said": 2**31, "state": wanted})["state"]
            if part is None:
                raise JobGone(f"the server has no checkpoint of round {round} any more; resume the run")
            data = base64.b64decode(part["data"])
            size = part["of"]
            offset += len(data)
            yield name, data
