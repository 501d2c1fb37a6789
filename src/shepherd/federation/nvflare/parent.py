"""FLARE's parent process of a server or a site: `python -m shepherd.federation.nvflare.parent KIND KIT`.

It runs what the kit's own start script would run, with two things added at the server, since FLARE lets in
whoever its authority once signed and is silent about everybody else: a line in the log for each refused
connection, and an end to the connections of a removed site.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import runpy
import ssl
import sys
import time
from pathlib import Path
from typing import Any

from shepherd.federation.nvflare.hardening import Kind
from shepherd.federation.nvflare.kits import common_name
from shepherd.federation.nvflare.leftovers import JOBS, tidy

REMOVED = "disabled_clients.json"
"""Where FLARE's server keeps the names of the sites that were disabled, in its kit."""
HEARTBEAT = 2.0
"""Seconds between a site's signs of life; FLARE: 10. A restarted server knows its sites again after one."""
LOOK = 0.5
"""Seconds after which the list of removed sites is read again."""
_MODULES = {
    "server": "nvflare.private.fed.app.server.server_train",
    "site": "nvflare.private.fed.app.client.client_train",
}
_log = logging.getLogger("shepherd.door")


def main(kind: Kind, kit: Path, name: str) -> None:
    """Become FLARE's parent process of the kit; ends when FLARE does."""
    os.chdir(kit)
    os.environ["NVFL_JOB_STORE_ROOT"] = str(kit / JOBS)  # its settings can name no path that travels
    os.environ.setdefault("MALLOC_ARENA_MAX", "4")
    tidy(kit)
    if kind == "server":
        watch_the_door(kit)
    else:
        from shepherd.federation.nvflare.commands import restrict

        restrict()
    sys.argv = [_MODULES[kind], *_arguments(kind, kit, name)]
    runpy.run_module(_MODULES[kind], run_name="__main__", alter_sys=True)


def watch_the_door(kit: Path) -> None:
    """Make every TLS server of this process log its refusals, and cut the sites that were removed."""

    class Watched(_Watched):
        removed = Removed(kit / REMOVED)

    ssl.SSLContext.sslobject_class = Watched


class Removed:
    """The names in FLARE's list of disabled sites; looked at again at most every half second."""

    def __init__(self, file: Path) -> None:
        self._file, self._names, self._next = file, frozenset[str](), 0.0

    def __contains__(self, name: str | None) -> bool:
        if time.monotonic() >= self._next:
            self._next = time.monotonic() + LOOK
            self._names = _names(self._file)
        return name in self._names


class _Watched(ssl.SSLObject):
    """A TLS connection that leaves a line where FLARE's server would drop it without a word.

    FLARE lets the running job of a disabled site go on, and asks again for each new connection's name
    only. All traffic of a site comes through here, so here it ends at once.
    """

    removed: Removed
    _name: str | None = None

    def do_handshake(self) -> None:
        try:
            super().do_handshake()
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            raise  # not over yet
        except ssl.SSLError as error:
            if self.server_side:
                _log.warning("refused a TLS connection from %s: %s", _peer(), reason(error))
            raise
        if self.server_side:
            self._name = common_name(self.getpeercert())
            if self._name in self.removed:
                _log.warning("refused a TLS connection from %s: %s was removed", _peer(), self._name)
                raise ssl.SSLError(f"{self._name} was removed")

    def read(self, *arguments: Any) -> Any:
        if self._name in self.removed:
            _log.warning("cut a TLS connection: %s was removed", self._name)
            raise ssl.SSLError(f"{self._name} was removed")
        return super().read(*arguments)


def reason(error: ssl.SSLError) -> str:
    """Why a handshake failed, in words.

    >>> reason(ssl.SSLError(1, "[SSL: HTTP_REQUEST] http request (_ssl.c:1006)"))
    'it does not speak TLS (http request)'
    """
    text = getattr(error, "verify_message", "") or str(error).partition("] ")[2].partition(" (_ssl")[0]
    text = text or str(error)
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate does not hold ({text})"
    if "peer did not return a certificate" in text:
        return "it showed no certificate"
    if any(word in text for word in ("http request", "wrong version number", "unexpected message")):
        return f"it does not speak TLS ({text})"
    return text


def _arguments(kind: Kind, kit: Path, name: str) -> list[str]:
    common = ["secure_train=true", "org=shepherd", "config_folder=config"]
    if kind == "server":
        return ["-m", str(kit), "-s", "fed_server.json", "--set", *common]
    beat = f"heart_beat_interval={HEARTBEAT}"
    return ["-m", str(kit), "-s", "fed_client.json", "--set", *common, f"uid={name}", beat]


def _names(file: Path) -> frozenset[str]:
    """The names in FLARE's list; none where there is no list, and FLARE itself checks a damaged one."""
    try:
        return frozenset(json.loads(file.read_text(encoding="utf8"))["disabled_clients"])
    except (OSError, ValueError, KeyError, TypeError):
        return frozenset()


def _peer() -> str:
    """The address at the other end. TLS over a memory buffer does not know it; asyncio, which calls, does."""
    caller: Any = sys._getframe(2).f_back
    with contextlib.suppress(AttributeError, KeyError, TypeError, ValueError):
        host, port, *_ = caller.f_locals["self"]._transport.get_extra_info("peername")
        return f"{host}:{port}"
    return "an unknown address"


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]).resolve(), sys.argv[3] if len(sys.argv) > 3 else "")  # type: ignore[arg-type]
