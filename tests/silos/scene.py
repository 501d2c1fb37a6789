"""A federation on loopback for strangers to try: its processes, its administrators, and what its logs say.

Three sites with the real trainer over the embedded base. site-1 allows very little, so that whatever it does
is a fault; site-2 and site-3 allow what the runs of these tests ask for.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from shepherd.data import pipeline
from shepherd.errors import LocalError, SilosError
from shepherd.overrides import parse
from shepherd.settings import RunSettings
from shepherd.silos import loopback
from shepherd.silos.flare import provision
from shepherd.silos.flare.session import session
from shepherd.silos.loopback import Loopback
from shepherd.silos.protocol import ipc
from shepherd.silos.site import audit

SITES = ("site-1", "site-2", "site-3")
ADMINS = ("admin", "lea:lead", "olga:org_admin", "max:member")
READY = 300.0
"""Seconds in which all sites must have connected, on a machine that has other things to do."""
RUN: Mapping[str, Any] = {
    "model": {"base": "tiny"},
    "adapter": {"rank": 2, "targets": ["q_proj"]},
    "data": {"source": "world", "template": "alpaca-short", "holdout": 0.0, "limit": 72},
    "split": {"clients": len(SITES), "by": "iid"},
    "federation": {"rounds": 2, "quorum": 0.3},
    "silos": {"deadline_s": 60.0},
    "tuning": {"max_steps": 1, "batch_size": 16},
    "evaluation": {"answers": 0},
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """The federation, and a folder for what strangers bring."""

    made: Loopback
    scratch: Path

    @property
    def markers(self) -> Path:
        """Where code from outside would leave a file, if it ever ran."""
        return self.scratch / "markers"

    @property
    def authority(self) -> Path:
        return self.made.folder / provision.AUTHORITY

    @property
    def server(self) -> Path:
        """The server's kit."""
        return self.made.folder / "server"

    def admin(self, name: str) -> Path:
        return self.made.folder / "admins" / name

    def home(self, site: str) -> Path:
        return self.made.kit(site) / "shepherd"

    def audited(self, site: str) -> list[audit.Event]:
        return audit.events(self.home(site) / audit.FILE)

    def granted(self, site: str, kind: str = "") -> int:
        """How often the site has begun to work for somebody; on one kind of request, or on any."""
        return sum(e.what == "granted" and e.kind.startswith(kind) for e in self.audited(site))

    def registered(self, site: str) -> int:
        """How often the server has taken the site in."""
        return len(re.findall(rf"New client {site}@|Re-activate the client: {site}\b", self.log("server")))

    def log(self, who: str, seen: Mapping[str, int] = {}) -> str:
        """What the server or a site has written down, and its processes with it, since `seen`."""
        return "".join(text[seen.get(name, 0) :] for name, text in self._logs(who).items())

    def seen(self, who: str) -> Mapping[str, int]:
        """How much of each log there is by now."""
        return {name: len(text) for name, text in self._logs(who).items()}

    def _logs(self, who: str) -> Mapping[str, str]:
        home = self.server / "shepherd" if who == "server" else self.home(who)
        return {name: _text(home / f"{name}.log") for name in ("supervisor", "flare", "trainer")}

    def restart_server(self) -> None:
        """Kill FLARE's server; it is started again, and its sites come back."""
        started = re.findall(r"flare started \(process (\d+)\)", self.log("server"))
        before = self.registered("site-2")
        os.kill(int(started[-1]), signal.SIGKILL)
        assert until(lambda: self.registered("site-2") > before, 60)


def settings(folder: Path, **tables: Mapping[str, Any]) -> RunSettings:
    """The run file of these tests, with some keys changed."""
    changed = {name: {**RUN.get(name, {}), **table} for name, table in tables.items()}
    return parse({**RUN, **changed, "output": str(folder)}, "the run of the test")


def strict(tries: int) -> dict[str, Any]:
    """A policy that refuses every run, each by the first rule that it breaks; `tries` rounds are allowed."""
    now = datetime.now()
    begins, ends = now + timedelta(hours=8), now + timedelta(hours=16)
    return {
        "max_rank": 4,
        "max_rounds": tries,
        "max_steps": 10,
        "algorithms": ["fedavg"],
        "min_cohort": 3,
        "hours": f"{begins:%H:%M}-{ends:%H:%M}",
    }


@contextmanager
def running(folder: Path, tries: int = 3) -> Iterator[Scene]:
    """Make the federation and run it until the end of the block."""
    shares = pipeline.divide(settings(folder / "unused"))
    policies = {"site-1": strict(tries)}
    policies |= {site: {"max_rounds": 10 * tries, "min_cohort": 1} for site in SITES[1:]}
    configs = {
        site: loopback.write_site(folder / "sites" / site, shares.of(places), policies[site])
        for site, places in zip(SITES, shares.clients.values(), strict=True)
    }
    made = Loopback(folder=folder / "federation", sites=SITES)
    provision.create(made.folder, f"localhost:{loopback.free_port()}", SITES, ADMINS)
    (folder / "scratch" / "markers").mkdir(parents=True)
    with up(made, configs):
        yield Scene(made=made, scratch=folder / "scratch")


@contextmanager
def up(made: Loopback, configs: Mapping[str, Path]) -> Iterator[None]:
    """Run the server and the sites of a federation that is made, until the end of the block."""
    (made.folder / "logs").mkdir()
    with ExitStack() as ends:
        ends.enter_context(loopback.started(made, "server", ["server", str(made.folder)]))
        for site, config in configs.items():
            words = ["site", str(made.kit(site)), "--config", str(config)]
            ends.enter_context(loopback.started(made, site, words))
        assert until(lambda: _connected(made), READY), f"not all of {', '.join(made.sites)} are connected"
        assert until(lambda: all(map(_listening, map(made.kit, made.sites))), READY), "no trainer at a site"
        yield


def _listening(kit: Path) -> bool:
    try:
        return ipc.address(kit / "shepherd").exists()
    except LocalError:
        return False


def _connected(made: Loopback) -> bool:
    try:
        with session(made.admin, 30.0) as server:
            return until(lambda: set(made.sites) <= set(server.connected()), READY)
    except SilosError:  # the server is not up yet
        time.sleep(1.0)
        return False


def copied(kit: Path, to: Path) -> Path:
    """A kit for a stranger to spoil, without what has run in it."""
    to.mkdir(parents=True)
    for part in ("startup", "local"):
        if (kit / part).is_dir():
            shutil.copytree(kit / part, to / part)
    return to


def until(true: Callable[[], object], seconds: float = 30.0) -> bool:
    """Wait until it is true; False where it never was."""
    ends = time.monotonic() + seconds
    while not true():
        if time.monotonic() > ends:
            return False
        time.sleep(0.05)
    return True


def _text(path: Path) -> str:
    return path.read_text(encoding="utf8", errors="replace") if path.exists() else ""
