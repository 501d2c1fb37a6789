"""FLARE's parent process of a server or a site.

    python -m shepherd.silos.flare.patches.site_parent KIND KIT

It runs what the kit's own start script would run, after `tls` has restricted the TLS connections and, at a
site, `allowlist` the server's commands.
"""

from __future__ import annotations

import os
import runpy
import sys
import tempfile
import threading
import time
from contextlib import suppress
from pathlib import Path

import psutil

from shepherd.errors import ShepherdError
from shepherd.silos.flare import kits, probe, tls
from shepherd.silos.flare.cleanup import JOBS, sweep, temporary, tidy
from shepherd.silos.flare.hardening import Kind
from shepherd.silos.flare.supervise import EXIT_NEEDS_PERSON
from shepherd.visible import in_this_process, shown_line

HEARTBEAT_S = 2.0
"""Time between a site's heartbeats (FLARE: 10 s); a restarted server knows its sites again after one."""
RESEND_S = 30
"""Time after which an unconfirmed part of a message is sent again. FLARE's 5 s are too short for a slow line,
which then fills with copies."""
SWEEP_INTERVAL_S = 600.0
"""Time between two clean-ups of what finished jobs left."""
_MODULES = {
    "server": "nvflare.private.fed.app.server.server_train",
    "site": "nvflare.private.fed.app.client.client_train",
}


def require_fit(kind: Kind, kit: Path) -> None:
    """Check the kit at every start, since the port may be taken or the clock wrong since the first one.

    FLARE itself would retry for ever in these cases.

    Raises:
        SilosError: the kit cannot be used now, or the port is taken.
    """
    found = kits.read(kit, kind)
    if kind == "server":
        probe.require_port(found)


def main(kind: Kind, kit: Path, name: str) -> None:
    """Run FLARE's parent process of the kit in this process, until FLARE ends."""
    os.chdir(kit)
    os.environ["NVFL_JOB_STORE_ROOT"] = str(kit / JOBS)  # its settings take no path relative to the kit
    os.environ["NVFLARE_STREAMING_RETRY_WAIT"] = str(RESEND_S)  # inherited by its job processes
    os.environ.setdefault("MALLOC_ARENA_MAX", "4")
    tidy(kit)
    with suppress(OSError):  # a full disk
        os.environ["TMPDIR"] = tempfile.tempdir = str(temporary(kit))  # FLARE leaves whole jobs there
    threading.Thread(target=_sweep, args=(kit,), daemon=True).start()
    from shepherd.silos.flare.job_policy import log_denials  # imports FLARE, which is slow

    log_denials()
    if kind == "server":
        tls.watch(kit)
    else:
        from shepherd.silos.flare.patches.allowlist import restrict

        restrict()
        tls.limit_unconfirmed_time()
        tls.require_server_identity()
    sys.argv = [_MODULES[kind], *_arguments(kind, kit, name)]
    runpy.run_module(_MODULES[kind], run_name="__main__", alter_sys=True)


def _sweep(kit: Path) -> None:
    while True:
        time.sleep(SWEEP_INTERVAL_S)
        with suppress(OSError, psutil.Error):  # such as too many open files: the next one may succeed
            sweep(kit, _running())


def _running() -> set[str]:
    """Words of the command lines of all descendants of this process, among them the ids of running jobs."""
    words: set[str] = set()
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):
            words.update(process.cmdline())
    return words


def _arguments(kind: Kind, kit: Path, name: str) -> list[str]:
    common = ["secure_train=true", "org=shepherd", "config_folder=config"]
    if kind == "server":
        return ["-m", str(kit), "-s", "fed_server.json", "--set", *common]
    beat = f"heart_beat_interval={HEARTBEAT_S}"
    return ["-m", str(kit), "-s", "fed_client.json", "--set", *common, f"uid={name}", beat]


if __name__ == "__main__":
    in_this_process()
    which, where, who, *_ = *sys.argv[1:], ""
    try:
        require_fit(which, Path(where).resolve())  # type: ignore[arg-type]
    except ShepherdError as error:
        print(shown_line(error), file=sys.stderr)
        sys.exit(EXIT_NEEDS_PERSON)
    main(which, Path(where).resolve(), who)  # type: ignore[arg-type]
