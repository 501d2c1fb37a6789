"""FLARE's parent process of a server or a site.

    python -m shepherd.silos.flare.patches.site_parent KIND KIT

It runs what the kit's own start script would run, after `door` has been put around the server's TLS
connections and `commands` between the server and a site.
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

HEARTBEAT = 2.0
"""Seconds between a site's signs of life; FLARE: 10. A restarted server knows its sites again after one."""
WAIT = 30
"""Seconds after which a part of a message that is not confirmed is sent again. FLARE: 5, in which a slow line
has not carried what was sent, and fills with copies of it."""
SWEEP = 600.0
"""Seconds between two looks at what jobs that are over have left."""
_MODULES = {
    "server": "nvflare.private.fed.app.server.server_train",
    "site": "nvflare.private.fed.app.client.client_train",
}


def require_fit(kind: Kind, kit: Path) -> None:
    """Look at each start at what was well at the first.

    FLARE itself tries again without end where the port is taken, or where a certificate does not hold by a
    clock that was set since.

    Raises:
        SilosError: the kit cannot be used now, or the port is taken.
    """
    found = kits.read(kit, kind)
    if kind == "server":
        probe.require_port(found)


def main(kind: Kind, kit: Path, name: str) -> None:
    """Become FLARE's parent process of the kit; ends when FLARE does."""
    os.chdir(kit)
    os.environ["NVFL_JOB_STORE_ROOT"] = str(kit / JOBS)  # its settings can name no path that travels
    os.environ["NVFLARE_STREAMING_RETRY_WAIT"] = str(WAIT)  # its job processes have it from here
    os.environ.setdefault("MALLOC_ARENA_MAX", "4")
    tidy(kit)
    with suppress(OSError):  # a full disk
        os.environ["TMPDIR"] = tempfile.tempdir = str(temporary(kit))  # where FLARE leaves whole jobs
    threading.Thread(target=_sweep, args=(kit,), daemon=True).start()
    from shepherd.silos.flare.job_policy import log_denials  # FLARE itself, which takes its time

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
        time.sleep(SWEEP)
        with suppress(OSError, psutil.Error):  # for want of open files, say: the next look may go
            sweep(kit, _running())


def _running() -> set[str]:
    """Words of the command lines of all that this process has started; a job's id is one of them."""
    words: set[str] = set()
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):
            words.update(process.cmdline())
    return words


def _arguments(kind: Kind, kit: Path, name: str) -> list[str]:
    common = ["secure_train=true", "org=shepherd", "config_folder=config"]
    if kind == "server":
        return ["-m", str(kit), "-s", "fed_server.json", "--set", *common]
    beat = f"heart_beat_interval={HEARTBEAT}"
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
