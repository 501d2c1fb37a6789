"""A server that is a script: an administrator's session without FLARE's processes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from shepherd.errors import OutOfReach
from shepherd.federation.nvflare.session import JobGone, JobSilent
from shepherd.silos import following

Row = dict[str, Any]
Step = Row | Exception | Callable[["Server"], Row]
SITES = ("a", "b")
DONE: Row = {"finished": True}
GONE = JobGone("the job does not run; resume")
SILENT = JobSilent("no answer; wait")
AWAY = OutOfReach("the server is down; start it")


def said(rows: int, outcome: Row | None = None, present: tuple[str, ...] = SITES, **more: Any) -> Row:
    """What a job tells that has finished the rounds before `rows`."""
    return {
        "opened": True,
        "log": [{"round": number} for number in range(rows)],
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
    working_: Callable[[str], dict[str, frozenset[str] | None]] = lambda job: dict.fromkeys(
        SITES, frozenset({job})
    )
    """Which jobs run at the sites, given the last one."""
    statuses: dict[str, str] = field(default_factory=dict)
    running: set[str] = field(default_factory=set)
    submitted: list[str] = field(default_factory=list)
    brought: list[str] = field(default_factory=list)
    aborted: list[str] = field(default_factory=list)
    asked: list[Row] = field(default_factory=list)
    events: list[str] = field(default_factory=list)
    logins: list[Exception | None] = field(default_factory=list)
    """What goes wrong with the next logins."""

    def connected(self) -> list[str]:
        return self.connected_

    def working(self) -> dict[str, frozenset[str] | None]:
        return self.working_(self.submitted[-1])

    def jobs(self) -> dict[str, str]:
        return dict.fromkeys(self.running, "server")

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

    def told(self, job: str, asked: Row) -> Row:
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
    """Have `Following` talk to the script, in time of its own."""
    clock = Clock()
    monkeypatch.setattr(following, "session", lambda kit: _session(server))
    monkeypatch.setattr(following, "time", clock)
    return clock
