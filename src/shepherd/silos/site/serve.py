"""Run a site of a federation: keep its trainer and FLARE's client process running."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from pathlib import Path

from shepherd.errors import OutOfReach, SilosError
from shepherd.silos.flare import kits
from shepherd.silos.flare.hardening import harden
from shepherd.silos.flare.kits import Kit
from shepherd.silos.flare.probe import HangUpCounter, HungUp, clock, reach
from shepherd.silos.flare.supervise import Child, LogAlert, supervise, until_signalled
from shepherd.silos.site import privacy_ledger, site_settings
from shepherd.silos.site.site_settings import SiteSettings

SERVER_CHECK_S = 30.0
"""Time between two checks that the server can be reached and still accepts this kit."""
_FIRST_PAUSE_S, _MAX_PAUSE_S = 1.0, 10.0


def join(folder: str | Path, site_toml: str | Path, echo: Callable[[str], None]) -> None:
    """Run a site until SIGTERM or SIGINT; its two processes are restarted whenever they end.

    Args:
        folder: the site's kit.
        site_toml: the site's file, with what its owner permits.
        echo: called with one line for each event.

    Raises:
        SilosError: `folder` is no kit of a site, its certificate is not valid, the server is of another
            federation or refuses the kit, or the kit is already running on this machine.
        SettingsError: the site's file is not valid.
        FolderError: the site requires privacy, and its ledger is lost or cannot be read.
    """
    kit = kits.read(folder, "site")
    settings = site_settings.read(site_toml)
    if settings.policy.require_privacy:
        echo(_visits(kit, settings))
    with until_signalled() as stop:
        keep(kit, [_trainer(kit, Path(site_toml)), _flare(kit)], echo, stop)


def _visits(kit: Kit, settings: SiteSettings) -> str:
    """How many visits the ledger counts, which shows whether a new kit has the ledger of the old one."""
    entries = privacy_ledger.read(privacy_ledger.ledger_of(kit.home, settings.data))
    visits = len({(entry.when, entry.run, entry.round, entry.id) for entry in entries})
    counts = f"counts {visits:,} visit{'s' * (visits != 1)}" if visits else "is new: no visit counts as spent"
    return f"the privacy ledger of {settings.data.source} {counts}"


def keep(kit: Kit, children: list[Child], echo: Callable[[str], None], stop: threading.Event) -> None:
    """Wait for the server, then keep the children running until `stop` is set."""
    kits.require_plain_path(kit)
    for line in harden(kit.folder, "site"):
        echo(line)
    _await_server(kit, echo, stop)
    if stop.is_set():
        return
    threading.Thread(target=_watch, args=(kit, echo, stop), daemon=True).start()
    supervise(kit.home, children, echo, stop)


def _await_server(kit: Kit, echo: Callable[[str], None], stop: threading.Event) -> None:
    """Return once the server accepts the kit; raise errors that waiting cannot fix."""
    pause, said, hang_ups = _FIRST_PAUSE_S, "", HangUpCounter()
    while not stop.is_set():
        try:
            apart = clock(reach(kit))
        except (OutOfReach, HungUp) as error:
            hang_ups.failed(error)
            if str(error) != said:
                echo(f"{error}; trying again")
            said = str(error)
            stop.wait(pause)
            pause = min(2 * pause, _MAX_PAUSE_S)
            continue
        echo(f"{kit.name} has reached the server at {kit.host}:{kit.port}")
        if apart:
            echo(apart)
        return


def _watch(kit: Kit, echo: Callable[[str], None], stop: threading.Event) -> None:
    """Report when the server is lost or reached again, or a clock is wrong, which FLARE does not."""
    said = ""
    while not stop.wait(SERVER_CHECK_S):
        try:
            now = clock(reach(kit)) or ""
        except SilosError as error:
            now = str(error)
        if now != said:
            echo(now or f"the server at {kit.host}:{kit.port} is reachable, and the clocks agree")
        said = now


def _trainer(kit: Kit, site_toml: Path) -> Child:
    module = "shepherd.silos.site.trainer"
    named = ["--name", kit.name, "--home", str(kit.home)]
    return Child("trainer", [sys.executable, "-m", module, str(site_toml.absolute()), *named])


def _flare(kit: Kit) -> Child:
    module = "shepherd.silos.flare.patches.site_parent"
    return Child("flare", [sys.executable, "-m", module, "site", str(kit.folder), kit.name], alerts=_ALERTS)


_ALERTS = (
    LogAlert(
        r"Connection \[.* is closed PID: {pid}\b",
        "the server has closed this site's connection four times in a minute: unless it is being restarted, "
        "another machine runs with this kit, and one of the two must stop; the server's log says which it is",
        times=4,
    ),
)
