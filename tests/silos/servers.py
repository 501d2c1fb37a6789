"""A server that is a script: an administrator's session without FLARE's processes."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from shepherd.errors import OutOfReach
from shepherd.silos.coordinator import admin, coordinate, job_follower
from shepherd.silos.flare.session import JobGone, JobSilent, Work
from shepherd.silos.protocol import jobspec, wire
from shepherd.silos.protocol.jobspec import JobSpec
from shepherd.silos.server.server_run import ServerRun
from tests.silos.server.posts import Letters

Row = dict[str, Any]
Step = Row | Exception | Callable[["Server"], Row]
SITES = ("a", "b")
ORDER = JobSpec(run="0" * 16, base="b", fingerprint="f", version="0", sites=SITES, settings={})
DONE: Row = {"finished": True}
GONE = JobGone("the job is not running; resume")
SILENT = JobSilent("no answer; wait")
AWAY = OutOfReach("the server is down; start it")


def row(number: int) -> Row:
    """What a round's row says at least."""
    if not number:
        return {"round": 0}
    counts = dict.fromkeys(("bytes_down", "bytes_up", "examples", "steps"), 0)
    return {
        "round": number,
        "cohort": [],
        **{name: {} for name in ("weights", "losses", "failures")},
        **dict.fromkeys(("loss", "gap")),
        **counts,
        "tokens": {"seen": 0, "trained": 0},
        "seconds": {"round": 1.0, "tuning": 1.0},
    }


def said(rows: int, outcome: Row | None = None, present: tuple[str, ...] = SITES, **more: Any) -> Row:
    """What a job tells that has finished the rounds before `rows`."""
    return {
        "opened": True,
        "log": [row(number) for number in range(rows)],
        "said": [],
        "progress": None,
        "outcome": outcome,
        "present": list(present),
        **more,
    }


@dataclass
class Server:
    """Each job is a script of answers, errors, or functions of the server; the last step stands."""

    scripts: list[list[Step]]
    connected_: list[str] = field(default_factory=lambda: list(SITES))
    working_: Callable[[str], dict[str, Work]] = lambda job: dict.fromkeys(SITES, frozenset({job}))
    """Which jobs run at the sites, given the last one."""
    statuses: dict[str, str] = field(default_factory=dict)
    running: set[str] = field(default_factory=set)
    submitted: list[str] = field(default_factory=list)
    brought: list[str] = field(default_factory=list)
    aborted: list[str] = field(default_factory=list)
    asked: list[Row] = field(default_factory=list)
    events: list[str] = field(default_factory=list)
    runs: dict[str, str] = field(default_factory=dict)
    """The runs of jobs that are not of the one run."""
    logins: list[Exception | None] = field(default_factory=list)
    """What goes wrong with the next logins."""

    def connected(self) -> list[str]:
        return self.connected_

    def working(self) -> dict[str, Work]:
        return self.working_(self.submitted[-1])

    def jobs(self) -> set[str]:
        return set(self.running)

    def run(self, job: str) -> str:
        return self.runs.get(job, ORDER.run)

    def submit(self, folder: Path) -> str:
        assert (folder / "meta.json").is_file()
        (state,) = (folder / "server/config/shepherd").glob("round-*/state.json")
        job = f"job-{len(self.submitted)}"
        self.brought.append(state.parent.name)
        self.submitted.append(job)
        self.running.add(job)
        self.events.append(f"submit {job}")
        return job

    def status(self, job: str) -> str:
        return self.statuses.get(job, "RUNNING" if job in self.running else "FINISHED:EXECUTION_EXCEPTION")

    def abort(self, job: str) -> None:
        self.aborted.append(job)
        self.events.append(f"abort {job}")
        self.running.discard(job)
        if self.statuses.get(job) == "SUBMITTED":
            self.statuses[job] = "FINISHED:ABORTED"

    def ask_job(self, job: str, asked: Row) -> Row:
        self.asked.append(asked)
        script = self.scripts[int(job.removeprefix("job-"))]
        step = script.pop(0) if len(script) > 1 else script[0]
        step = step(self) if callable(step) else step
        if isinstance(step, Exception):
            if step is GONE:
                self.running.discard(job)
            raise step
        log = step["log"]
        last = log[-1]["round"] if log else -1
        rows = [row for row in log if row["round"] >= asked["rows"]]
        plain = {key: value for key, value in step.items() if key != "log"}
        return {**plain, "rows": rows, "round": max(0, last), "count": last + 1}


@contextmanager
def _session(server: Server) -> Iterator[Server]:
    error = server.logins.pop(0) if server.logins else None
    if error:
        raise error
    server.events.append("login")
    try:
        yield server
    finally:
        server.events.append("logout")


@dataclass
class Clock:
    """Time that passes only by sleeping."""

    now: float = 1000.0
    pauses: list[float] = field(default_factory=list)

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.pauses.append(seconds)
        self.now += seconds


def replaced(monkeypatch: pytest.MonkeyPatch, server: Server) -> Clock:
    """Have `JobFollower` talk to the script, in time of its own."""
    clock = Clock()
    for module in (job_follower, admin):
        monkeypatch.setattr(module, "session", lambda kit: _session(server))
    monkeypatch.setattr(job_follower, "time", clock)
    return clock


@dataclass
class Hosted:
    """A server that goes through a job's rounds as it is given the job, with sites that are functions."""

    home: Path
    post: Letters
    dies: list[int] = field(default_factory=list)
    """Rounds before which the next jobs die."""
    connected_: list[str] = field(default_factory=lambda: list(SITES))
    served: dict[str, ServerRun] = field(default_factory=dict)
    running: set[str] = field(default_factory=set)
    aborted: list[str] = field(default_factory=list)
    asked: list[Row] = field(default_factory=list)
    on_reply: set[str] = field(default_factory=set)
    fetching: list[Exception | Row] = field(default_factory=list)
    """What comes in place of the next pieces of a checkpoint."""
    logins: int = 0

    def connected(self) -> list[str]:
        return self.connected_

    def working(self) -> dict[str, Work]:
        return dict.fromkeys(SITES, frozenset(self.served))

    def jobs(self) -> set[str]:
        return set(self.running)

    def submit(self, folder: Path) -> str:
        job = f"job-{len(self.served)}"
        brought = folder / "server" / "config" / "shepherd"
        order = jobspec.read((brought / "order.json").read_text())
        (given,) = brought.glob("round-*")
        post = Mortal(self.post, self.dies.pop(0) if self.dies else None)
        kept = self.home / f"given-{job}"
        shutil.copytree(given, kept / given.name)
        served = self.served[job] = ServerRun(order, self.home / order.run, kept / given.name, post)
        self.running.add(job)
        with suppress(Killed):
            served.run()
        return job

    def status(self, job: str) -> str:
        return "RUNNING" if job in self.running else "FINISHED:ABORTED"

    def abort(self, job: str) -> None:
        self.aborted.append(job)
        self.running.discard(job)

    def ask_job(self, job: str, asked: Row) -> Row:
        self.asked.append(asked)
        if asked.get("state") and self.fetching:
            step = self.fetching.pop(0)
            if isinstance(step, Exception):
                raise step
            return {"state": step}
        answer = self.served[job].snapshot(asked)
        told = bool(answer["rows"] or answer["outcome"] or asked.get("state") or job not in self.on_reply)
        self.on_reply.add(job)
        if job not in self.running or not told:
            self.running.discard(job)  # it died
            raise GONE
        return {**answer, "present": list(SITES)}


class Killed(BaseException):  # no error that anybody could answer
    """The process of a job is gone."""


@dataclass
class Mortal:
    """A post whose process dies as it is asked to carry a certain round."""

    post: Letters
    dies: int | None

    def present(self) -> Sequence[str]:
        return self.post.present()

    def ask(self, message: bytes, sites: Sequence[str], seconds: float) -> Iterator[tuple[str, bytes]]:
        request = wire.decode_request(message)
        if request.kind == "train" and request.round == self.dies:
            raise Killed
        return self.post.ask(message, sites, seconds)


def hosted(monkeypatch: pytest.MonkeyPatch, server: Hosted) -> Clock:
    """Have the coordinator talk to it, in time that passes only by sleeping."""

    @contextmanager
    def session(kit: Path) -> Iterator[Hosted]:
        server.logins += 1
        yield server

    clock = Clock()
    for module in (job_follower, coordinate, admin):
        monkeypatch.setattr(module, "session", session)
    for module in (job_follower, coordinate):
        monkeypatch.setattr(module, "time", clock)
    return clock
