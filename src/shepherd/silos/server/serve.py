"""Run the server of a federation: keep FLARE's server process running."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from pathlib import Path

from shepherd.silos.flare import kits, provision
from shepherd.silos.flare.hardening import harden
from shepherd.silos.flare.kits import Kit
from shepherd.silos.flare.probe import require_port
from shepherd.silos.flare.supervise import Child, LogAlert, supervise, until_signalled


def serve(folder: str | Path, echo: Callable[[str], None]) -> None:
    """Run the server until SIGTERM or SIGINT; FLARE's process is restarted whenever it ends.

    Args:
        folder: the server's kit, or the folder of its federation.
        echo: called with one line for each event.

    Raises:
        SilosError: `folder` is no kit of a server, its certificate is not valid, the port is taken, or the
            kit is already running on this machine.
    """
    with until_signalled() as stop:
        keep(kit_in(folder), echo, stop)


def kit_in(folder: str | Path) -> Kit:
    """Read the server's kit, from its own folder or from that of the federation.

    Raises:
        SilosError: the folder is no valid kit of a server; see `kits.read`.
    """
    folder = Path(folder)
    return kits.read(folder / "server" if provision.holds_federation(folder) else folder, "server")


def keep(kit: Kit, echo: Callable[[str], None], stop: threading.Event) -> None:
    """Keep the server running until `stop` is set."""
    kits.require_plain_path(kit)
    for line in harden(kit.folder, "server"):
        echo(line)
    echo(f"the server of {kit.federation}: sites and administrators reach it at {kit.host}:{kit.port}")
    supervise(kit.home, [_flare(kit)], echo, stop, before=lambda: require_port(kit))


def _flare(kit: Kit) -> Child:
    module = "shepherd.silos.flare.patches.site_parent"
    return Child("flare", [sys.executable, "-m", module, "server", str(kit.folder)], alerts=_ALERTS)


_ALERTS = (
    LogAlert(
        r"Failed to re-activate the client:(\S+): already registered",
        r"two machines run with the kit of \1; have its owner stop one of them",
    ),
)
