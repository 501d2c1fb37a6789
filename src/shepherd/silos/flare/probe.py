"""Check whether the server can be reached with a kit, and if not, why; FLARE would wait silently."""

from __future__ import annotations

import os
import socket
import ssl
import time
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime

from shepherd.errors import OutOfReach, SilosError
from shepherd.silos.flare.kits import Kit, common_name

MAX_HANG_UPS = 5
"""Number of times in a row that a server may hang up without a reason before it counts as refusing."""
MAX_CLOCK_SKEW_S = 60.0
"""Difference of two clocks, in seconds, from which it is reported."""
_PROXIES = ("https_proxy", "http_proxy", "all_proxy", "grpc_proxy")
_NOT_YET_VALID, _EXPIRED = 9, 10  # OpenSSL's X509_V_ERR_CERT_NOT_YET_VALID and _CERT_HAS_EXPIRED
_NEW_KIT_AGE = timedelta(days=1)
"""Age of a kit up to which a slow clock may be why a server refuses it."""
_QUESTION = b"GET / HTTP/1.1\r\nHost: %s\r\nConnection: close\r\n\r\n"


class HungUp(SilosError):
    """The server closed the connection without a reason: the kit was removed, or the server is stopping."""


@dataclass(slots=True)
class HangUpCounter:
    """Counts attempts in a row at which the server hung up, to stop trying where it seems to refuse."""

    _hung_up: int = 0

    def failed(self, error: OutOfReach | HungUp) -> None:
        """Count a failed attempt; raise `error` after more than `MAX_HANG_UPS` hang-ups in a row."""
        self._hung_up = self._hung_up + 1 if isinstance(error, HungUp) else 0
        if self._hung_up > MAX_HANG_UPS:
            raise error

    def succeeded(self) -> None:
        """Reset the count."""
        self._hung_up = 0


@dataclass(frozen=True, slots=True)
class Reached:
    """A server that accepts this kit's certificate."""

    skew: float | None  # seconds that this machine's clock is ahead of the server's; None if it did not say


def reach(kit: Kit, timeout: float = 5.0) -> Reached:
    """Connect to the server of a kit with its certificate, and wait for a first answer.

    In TLS 1.3 a server refuses a client only after the client's handshake, so one harmless request is sent.

    Raises:
        OutOfReach: the name is unknown, nothing listens, or there is no answer in `timeout` seconds.
        HungUp: the server refuses this kit, or is stopping.
        SilosError: the server is of another federation, its certificate or this kit's is not valid, or it
            refuses this kit.
    """
    where = f"{kit.host}:{kit.port}"
    try:
        with _connected(kit, timeout) as plain, _secured(kit, plain, where) as secure:
            _require_identity(kit, secure, where)
            return Reached(_clock_skew(_first_answer(kit, secure, where)))
    except TimeoutError:
        why = f"the server at {where} does not answer within {timeout:g} s; {_CHECK_SERVER}"
    except OSError as error:
        why = f"the connection to {where} broke ({error.strerror or error}); {_CHECK_SERVER}"
    except OutOfReach as error:
        why = str(error)
    raise OutOfReach(f"{why}{_network_hints(kit.host)}")


def _network_hints(host: str) -> str:
    """Hints on the network: FLARE listens on IPv4 only, and uses no proxy."""
    forms = ((name, name.upper()) for name in _PROXIES)
    found = [next(filter(os.environ.get, pair)) for pair in forms if any(map(os.environ.get, pair))]
    proxies = (
        f"; the connection is direct, and not through the proxy in {' or '.join(found)}" if found else ""
    )
    try:
        kinds = {address[0] for address in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)}
    except OSError:
        return proxies
    ipv6 = f"; the name {host} resolves to IPv6 only, and the server listens on IPv4: give it an IPv4 address"
    return (ipv6 if kinds == {socket.AF_INET6} else "") + proxies


def require_port(kit: Kit) -> None:
    """Require that the server's port is free; FLARE would only log that it is taken, and retry for ever.

    Raises:
        SilosError: this process cannot listen on the port.
    """
    with socket.socket() as trial:
        trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            trial.bind(("", kit.port))
        except PermissionError as error:
            raise SilosError(
                f"this user may not listen on port {kit.port}; make the federation with another port"
            ) from error
        except OSError as error:
            raise SilosError(
                f"port {kit.port} is taken on this machine ({error.strerror}); stop the program that"
                " listens there"
            ) from error


def clock(reached: Reached) -> str | None:
    """A sentence if this clock and the server's differ too much, else None."""
    if reached.skew is None or abs(reached.skew) <= MAX_CLOCK_SKEW_S:
        return None
    side = "ahead of" if reached.skew > 0 else "behind"
    return (
        f"this machine's clock is {abs(reached.skew) / 60:.0f} min {side} the server's; set the wrong one, "
        "since certificates and a site's working hours depend on it, and a site refuses messages that"
        " are too old"
    )


_CHECK_SERVER = "check that it is running and that no firewall blocks the connection"


def _connected(kit: Kit, timeout: float) -> socket.socket:
    where = f"{kit.host}:{kit.port}"
    try:
        return socket.create_connection((kit.host, kit.port), timeout)
    except socket.gaierror as error:
        raise OutOfReach(
            f"the name {kit.host} cannot be resolved ({error.strerror}); check DNS or /etc/hosts"
        ) from error
    except ConnectionRefusedError as error:
        raise OutOfReach(
            f"nothing listens at {where}; start the server with `shepherd silos server`"
        ) from error


def _secured(kit: Kit, plain: socket.socket, where: str) -> ssl.SSLSocket:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.check_hostname = False  # as in FLARE: a server is known by its identity, whatever leads to it
    context.load_verify_locations(kit.root)
    context.load_cert_chain(kit.certificate, kit.key)
    try:
        return context.wrap_socket(plain, server_hostname=kit.host)
    except ssl.SSLCertVerificationError as error:
        raise SilosError(_distrust(kit, error, where)) from error
    except ssl.SSLEOFError as error:
        raise OutOfReach(f"the server at {where} closed the connection at once; {_CHECK_SERVER}") from error
    except ssl.SSLError as error:
        if "alert" in str(error).lower():
            raise SilosError(_refusal(kit, where, error)) from error
        raise SilosError(
            f"the program that listens at {where} is no server of a federation; check the port"
        ) from error


def _distrust(kit: Kit, error: ssl.SSLCertVerificationError, where: str) -> str:
    if error.verify_code in (_NOT_YET_VALID, _EXPIRED):
        ended = error.verify_code == _EXPIRED
        state, way = ("has expired", "give the server a new kit") if ended else ("is not valid yet", "wait")
        return (
            f"the certificate of the server at {where} {state} by this machine's clock "
            f"({datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC); set the clock, or {way}"
        )
    return (
        f"the server at {where} belongs to another federation: the authority of this kit ({kit.folder})"
        " did not "
        f"sign its certificate ({error.verify_message}); use the kit that was made with that server"
    )


def _require_identity(kit: Kit, secure: ssl.SSLSocket, where: str) -> None:
    name = common_name(secure.getpeercert())
    if name != kit.identity:
        raise SilosError(
            f"the server at {where} shows the certificate of {name}, and this kit expects {kit.identity}; "
            "check the address and which program listens there"
        )


def _first_answer(kit: Kit, secure: ssl.SSLSocket, where: str) -> bytes:
    try:
        secure.sendall(_QUESTION % kit.host.encode())
        answer = secure.recv(4096)
    except TimeoutError:
        raise
    except (ssl.SSLError, ConnectionError) as error:
        kind = SilosError if "alert" in str(error).lower() else HungUp
        raise kind(_refusal(kit, where, error)) from error
    if not answer:
        raise HungUp(_refusal(kit, where, None))
    return answer


def _refusal(kit: Kit, where: str, error: OSError | None) -> str:
    said = "it closed the connection" if error is None else _alert(error)
    age = datetime.now(UTC) - kit.not_before
    new = (
        f"; the kit is new, so the server's clock may be behind {kit.not_before:%Y-%m-%d %H:%M:%S} UTC, "
        "before which its certificate is not valid"
    )
    return (
        f"the server at {where} refuses the certificate of {kit.name} ({said}); either {kit.name} was "
        "removed, the clocks differ or the kit is an old one: the server's log says which"
        f"{new if age < _NEW_KIT_AGE else ''}"
    )


def _alert(error: OSError) -> str:
    """The reason that the other end gave, without OpenSSL's prefix.

    >>> _alert(ssl.SSLError(1, "[SSL: TLSV1_ALERT_UNKNOWN_CA] tlsv1 alert unknown ca (_ssl.c:2580)"))
    'alert unknown ca'
    """
    if not isinstance(error, ssl.SSLError):
        return error.strerror or "it closed the connection"
    text = str(error).partition("] ")[2].partition(" (_ssl")[0]
    return text[text.find("alert") :] if "alert" in text else text or "it closed the connection"


def _clock_skew(answer: bytes) -> float | None:
    """Seconds by which this clock is ahead of the answer's Date header; None if there is none."""
    for line in answer.split(b"\r\n"):
        name, _, value = line.partition(b":")
        if name.lower() == b"date":
            try:
                return time.time() - parsedate_to_datetime(value.decode("latin1").strip()).timestamp()
            except ValueError:
                return None
    return None
