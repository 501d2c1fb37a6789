"""The TLS connections of FLARE's processes, which FLARE itself watches over too little.

Its server lets in whoever its authority once signed and is silent about everybody else; here a refused
connection leaves a line in the log, and those of a removed site or administrator end.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import logging
import socket
import ssl
import sys
import time
from pathlib import Path
from typing import Any

from shepherd.silos.flare import kits
from shepherd.silos.flare.kits import common_name
from shepherd.silos.flare.known_sites import Acquainted

REMOVED = "disabled_clients.json"
"""Where FLARE's server keeps the names of the sites and administrators that were disabled, in its kit."""
LOOK = 0.5
"""Seconds after which the list of who is removed is read again."""
SILENCE = 15.0
"""Seconds that the other end may leave what was sent unconfirmed."""
_log = logging.getLogger("shepherd.door")


def watch(kit: Path) -> None:
    """Make every TLS server of this process log its refusals, cut who was removed, and note who came."""

    class Watched(_Watched):
        removed = Removed(kit / REMOVED)
        acquainted = Acquainted(kit)
        own = kits.read(kit, "server").identity

    ssl.SSLContext.sslobject_class = Watched


def shorten_silence() -> None:
    """Make every TLS connection of this process end where the other end is silent for `SILENCE`."""
    ssl.SSLContext.sslobject_class = _Bounded


def hold_to_server() -> None:
    """End every TLS connection that FLARE makes in this process to another than the kit's server.

    FLARE takes any certificate of the federation there, so a member could sit between a site and the server:
    what FLARE asks of a server after that can be passed on to the real one.
    """
    from nvflare.fuel.f3.drivers import net_utils

    made = net_utils.get_ssl_context
    if getattr(made, "holds", False):
        return

    @functools.wraps(made)
    def get_ssl_context(params: dict[str, Any], ssl_server: bool) -> ssl.SSLContext | None:
        context: ssl.SSLContext | None = made(params, ssl_server)
        if context is not None and not ssl_server:
            context.sslobject_class = _holding(kits.read(Path(params["client_cert"]).parent).identity)
        return context

    get_ssl_context.holds = True  # type: ignore[attr-defined]
    net_utils.get_ssl_context = get_ssl_context


class Removed:
    """The names in FLARE's list of who is disabled; looked at again at most every half second."""

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


def _holding(identity: str) -> type[_Held]:
    class Held(_Held):
        server = identity

    return Held


class _Held(_Bounded):
    """A TLS connection to the one whose name is in the server's certificate, and to nobody else."""

    server: str

    def do_handshake(self) -> None:
        super().do_handshake()
        name = common_name(self.getpeercert())
        if name != self.server:
            _log.error(
                "what answers at %s shows the certificate of %s, not of %s", _peer(), name, self.server
            )
            raise ssl.SSLError(f"the certificate is of {name}, and {self.server} is expected")


class _Watched(_Bounded):
    """A TLS connection that leaves a line where FLARE's server would drop it without a word.

    FLARE lets the running job of a disabled site go on, and asks again for each new connection's name
    only. All traffic of a site or an administrator comes through here, so here it ends at once.
    """

    removed: Removed
    acquainted: Acquainted
    own: str
    """The name in this server's certificate, which its job processes show."""
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
            if self._name and self._name != self.own and "@" not in self._name:  # an administrator's has one
                self.acquainted.meet(self._name)

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
