"""The TLS connections of FLARE's processes, which FLARE itself watches over too little.

Its server lets in whoever its authority once signed and is silent about everybody else; here a refused
connection leaves a line in the log, and those of a removed site end.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import socket
import ssl
import sys
import time
from pathlib import Path
from typing import Any

from shepherd.federation.nvflare.kits import common_name

REMOVED = "disabled_clients.json"
"""Where FLARE's server keeps the names of the sites that were disabled, in its kit."""
LOOK = 0.5
"""Seconds after which the list of removed sites is read again."""
SILENCE = 15.0
"""Seconds that the other end may leave what was sent unconfirmed."""
_log = logging.getLogger("shepherd.door")


def watch(kit: Path) -> None:
    """Make every TLS server of this process log its refusals, and cut the sites that were removed."""

    class Watched(_Watched):
        removed = Removed(kit / REMOVED)

    ssl.SSLContext.sslobject_class = Watched


def shorten_silence() -> None:
    """Make every TLS connection of this process end where the other end is silent for `SILENCE`."""
    ssl.SSLContext.sslobject_class = _Bounded


class Removed:
    """The names in FLARE's list of disabled sites; looked at again at most every half second."""

    def __init__(self, file: Path) -> None:
        self._file, self._names, self._next = file, frozenset[str](), 0.0

    def __contains__(self, name: str | None) -> bool:
        if time.monotonic() >= self._next:
            self._next = time.monotonic() + LOOK
            self._names = _names(self._file)
        return name in self._names


class _Bounded(ssl.SSLObject):
    """A TLS connection that does not outlive its network.

    While a network is cut the kernel asks again and again, at last every two minutes, so long after the
    network is back nothing moves. FLARE makes a new connection within ten seconds once the old one ends.
    """

    def do_handshake(self) -> None:
        super().do_handshake()
        if sys.platform == "linux" and (transport := _transport()) is not None:
            with contextlib.suppress(AttributeError, OSError):
                connection = transport.get_extra_info("socket")
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, round(1000 * SILENCE))


class _Watched(_Bounded):
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


def _names(file: Path) -> frozenset[str]:
    """The names in FLARE's list; none where there is no list, and FLARE itself checks a damaged one."""
    try:
        return frozenset(json.loads(file.read_text(encoding="utf8"))["disabled_clients"])
    except (OSError, ValueError, KeyError, TypeError):
        return frozenset()


def _peer() -> str:
    """The address at the other end, for the log."""
    address = (transport := _transport()) and transport.get_extra_info("peername")
    return f"{address[0]}:{address[1]}" if address else "an unknown address"


def _transport() -> Any:
    """The TCP transport of the TLS connection that a caller is in, or None.

    TLS over a memory buffer knows nothing of its socket; asyncio's protocol, which calls it, does.
    """
    frame = sys._getframe(1)
    while frame is not None:
        if isinstance(
            transport := getattr(frame.f_locals.get("self"), "_transport", None), asyncio.Transport
        ):
            return transport
        frame = frame.f_back  # type: ignore[assignment]
    return None
