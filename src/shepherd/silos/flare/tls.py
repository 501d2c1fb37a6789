"""Stricter TLS connections for FLARE's processes.

FLARE's server accepts every certificate that its authority ever signed, and refuses others silently. Here
each refused connection is logged, and connections of a removed site or administrator are closed.
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
from shepherd.silos.flare.known_sites import SiteRecorder

REMOVED = "disabled_clients.json"
"""File of the server's kit in which FLARE keeps the names of disabled sites and administrators."""
REMOVED_CHECK_S = 0.5
"""Time after which the list of removed names is read again."""
UNCONFIRMED_TIMEOUT_S = 15.0
"""Longest time that sent data may stay unconfirmed before the connection is closed."""
_log = logging.getLogger("shepherd.door")


def watch(kit: Path) -> None:
    """Make all TLS servers of this process log refusals, cut removed names, and record sites that connect."""

    class Watched(_Watched):
        removed = Removed(kit / REMOVED)
        sites = SiteRecorder(kit)
        own = kits.read(kit, "server").identity

    ssl.SSLContext.sslobject_class = Watched


def limit_unconfirmed_time() -> None:
    """Close TLS connections of this process whose data stay unconfirmed for `UNCONFIRMED_TIMEOUT_S`."""
    ssl.SSLContext.sslobject_class = _Bounded


def require_server_identity() -> None:
    """Close TLS connections of FLARE clients in this process to any other than the kit's server.

    FLARE accepts any certificate of the federation from a server, so a member could sit between a site and
    the server and pass on what FLARE asks of it.
    """
    from nvflare.fuel.f3.drivers import net_utils

    made = net_utils.get_ssl_context
    if getattr(made, "holds", False):
        return

    @functools.wraps(made)
    def get_ssl_context(params: dict[str, Any], ssl_server: bool) -> ssl.SSLContext | None:
        context: ssl.SSLContext | None = made(params, ssl_server)
        if context is not None and not ssl_server:
            context.sslobject_class = _server_only(kits.read(Path(params["client_cert"]).parent).identity)
        return context

    get_ssl_context.holds = True  # type: ignore[attr-defined]
    net_utils.get_ssl_context = get_ssl_context


class Removed:
    """Names of disabled sites and administrators, reread from FLARE's list every `REMOVED_CHECK_S`."""

    def __init__(self, file: Path) -> None:
        self._file, self._names, self._next = file, frozenset[str](), 0.0

    def __contains__(self, name: str | None) -> bool:
        if time.monotonic() >= self._next:
            self._next = time.monotonic() + REMOVED_CHECK_S
            self._names = _names(self._file)
        return name in self._names


class _Bounded(ssl.SSLObject):
    """A TLS connection that is closed soon after its network fails.

    While a network is down the kernel retransmits ever more rarely, at last every two minutes, so the
    connection stalls long after the network is back. FLARE reconnects within ten seconds once a connection
    ends.
    """

    def do_handshake(self) -> None:
        super().do_handshake()
        if sys.platform == "linux" and (transport := _transport()) is not None:
            with contextlib.suppress(AttributeError, OSError):
                connection = transport.get_extra_info("socket")
                connection.setsockopt(
                    socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, round(1000 * UNCONFIRMED_TIMEOUT_S)
                )


def _server_only(identity: str) -> type[_ServerOnly]:
    class ServerOnly(_ServerOnly):
        server = identity

    return ServerOnly


class _ServerOnly(_Bounded):
    """A TLS connection that accepts only the certificate of the kit's server."""

    server: str

    def do_handshake(self) -> None:
        super().do_handshake()
        name = common_name(self.getpeercert())
        if name != self.server:
            _log.error("the server at %s shows the certificate of %s, not of %s", _peer(), name, self.server)
            raise ssl.SSLError(f"the certificate is of {name}, and {self.server} is expected")


class _Watched(_Bounded):
    """A server's TLS connection that logs refusals and closes at once when its name is removed.

    FLARE drops refused connections silently, lets a running job of a disabled site continue, and checks names
    for new connections only. All traffic of a site or an administrator passes through here.
    """

    removed: Removed
    sites: SiteRecorder
    own: str
    """Name in this server's certificate, which its job processes show."""
    _name: str | None = None

    def do_handshake(self) -> None:
        try:
            super().do_handshake()
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            raise  # handshake not finished
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
                self.sites.record(self._name)

    def read(self, *arguments: Any) -> Any:
        if self._name in self.removed:
            _log.warning("cut a TLS connection: %s was removed", self._name)
            raise ssl.SSLError(f"{self._name} was removed")
        return super().read(*arguments)


def reason(error: ssl.SSLError) -> str:
    """The reason of a failed handshake, for a message.

    >>> reason(ssl.SSLError(1, "[SSL: HTTP_REQUEST] http request (_ssl.c:1006)"))
    'it does not speak TLS (http request)'
    """
    text = getattr(error, "verify_message", "") or str(error).partition("] ")[2].partition(" (_ssl")[0]
    text = text or str(error)
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is not valid ({text})"
    if "peer did not return a certificate" in text:
        return "it showed no certificate"
    if any(word in text for word in ("http request", "wrong version number", "unexpected message")):
        return f"it does not speak TLS ({text})"
    return text


def _names(file: Path) -> frozenset[str]:
    """Names in FLARE's list; none if it is missing or damaged (FLARE itself checks a damaged one)."""
    try:
        return frozenset(json.loads(file.read_text(encoding="utf8"))["disabled_clients"])
    except (OSError, ValueError, KeyError, TypeError):
        return frozenset()


def _peer() -> str:
    """Address of the other end, for the log."""
    address = (transport := _transport()) and transport.get_extra_info("peername")
    return f"{address[0]}:{address[1]}" if address else "an unknown address"


def _transport() -> Any:
    """TCP transport of the TLS connection in whose methods the caller runs, or None.

    TLS over a memory buffer does not know its socket; asyncio's protocol on the call stack does.
    """
    frame = sys._getframe(1)
    while frame is not None:
        if isinstance(
            transport := getattr(frame.f_locals.get("self"), "_transport", None), asyncio.Transport
        ):
            return transport
        frame = frame.f_back  # type: ignore[assignment]
    return None
