"""Whether the server can be reached with a kit, and if not, why: FLARE itself would wait without a word."""

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

DOUBT = 5
"""Times in a row that a server may hang up without a word before it is taken to refuse."""
SKEW = 60.0
"""Seconds that two clocks may differ before somebody is told."""
_PROXIES = ("https_proxy", "http_proxy", "all_proxy", "grpc_proxy")
_NOT_YET_VALID, _EXPIRED = 9, 10  # OpenSSL's X509_V_ERR_CERT_NOT_YET_VALID and _CERT_HAS_EXPIRED
_NEW = timedelta(days=1)
"""Age of a kit in which a clock that is behind may be why a server refuses it."""
_QUESTION = b"GET / HTTP/1.1\r\nHost: %s\r\nConnection: close\r\n\r\n"


class HungUp(SilosError):
    """The server closed the connection without a word: as it does to who was removed, or as it ends."""


@dataclass(slots=True)
class Trials:
    """Tries to reach a server, one after the other, that are given up where it seems to refuse."""

    _hung_up: int = 0

    def failed(self, error: OutOfReach | HungUp) -> None:
        """Count a try; raise `error` where the server has hung up more than `DOUBT` times in a row."""
        self._hung_up = self._hung_up + 1 if isinstance(error, HungUp) else 0
        if self._hung_up > DOUBT:
            raise error

    def succeeded(self) -> None:
        """Begin counting anew."""
        self._hung_up = 0


@dataclass(frozen=True, slots=True)
class Reached:
    """A server that takes this kit's certificate."""

    skew: float | None  # seconds that this machine's clock is ahead of the server's; None if it did not say


def reach(kit: Kit, timeout: float = 5.0) -> Reached:
    """Connect to the server of a kit, show the certificate, and have a first answer.

    In TLS 1.3 a server says no only after the client has finished: so one harmless question is asked.

    Raises:
        OutOfReach: no such name, nobody listening, or no answer in `timeout` seconds.
        HungUp: the server refuses this kit, or is ending.
        SilosError: it is another federation's server, its certificate or this kit's does not hold, or
            the server refuses this kit.
    """
    where = f"{kit.host}:{kit.port}"
    try:
        with _connected(kit, timeout) as plain, _secured(kit, plain, where) as secure:
            _require_identity(kit, secure, where)
            return Reached(_skew(_first_answer(kit, secure, where)))
    except TimeoutError:
        why = f"the server at {where} does not answer within {timeout:g} s; {_LOOK}"
    except OSError as error:
        why = f"the connection to {where} broke ({error.strerror or error}); {_LOOK}"
    except OutOfReach as error:
        why = str(error)
    raise OutOfReach(f"{why}{_on_the_way(kit.host)}")


def _on_the_way(host: str) -> str:
    """What else may be between: FLARE listens at IPv4 alone, and asks no proxy."""
    forms = ((name, name.upper()) for name in _PROXIES)
    found = [next(filter(os.environ.get, pair)) for pair in forms if any(map(os.environ.get, pair))]
    proxies = f"; it is reached directly, and not by the proxy in {' or '.join(found)}" if found else ""
    try:
        kinds = {address[0] for address in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)}
    except OSError:
        return proxies
    ipv6 = f"; the name {host} leads to IPv6 alone, and the server listens at IPv4: give it such an address"
    return (ipv6 if kinds == {socket.AF_INET6} else "") + proxies


def require_port(kit: Kit) -> None:
    """FLARE would only log that the server's port is taken, among much else, and try without end.

    Raises:
        SilosError: this machine does not let us listen there.
    """
    with socket.socket() as trial:
        trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            trial.bind(("", kit.port))
        except PermissionError as error:
            raise SilosError(
                f"port {kit.port} is not for this user; make the federation with another"
            ) from error
        except OSError as error:
            raise SilosError(
                f"port {kit.port} is taken on this machine ({error.strerror}); stop what listens there"
            ) from error


def clock(reached: Reached) -> str | None:
    """A sentence where the two clocks are apart, else None."""
    if reached.skew is None or abs(reached.skew) <= SKEW:
        return None
    side = "ahead of" if reached.skew > 0 else "behind"
    return (
        f"this machine's clock is {abs(reached.skew) / 60:.0f} min {side} the server's; set the wrong one, "
        "since certificates and a site's hours go by the clock, and a site refuses what seems of another time"
    )


_LOOK = "see that it is running and that no firewall is between"


def _connected(kit: Kit, timeout: float) -> socket.socket:
    where = f"{kit.host}:{kit.port}"
    try:
        return socket.create_connection((kit.host, kit.port), timeout)
    except socket.gaierror as error:
        raise OutOfReach(
            f"the name {kit.host} is not known here ({error.strerror}); see to DNS or /etc/hosts"
        ) from error
    except ConnectionRefusedError as error:
        raise OutOfReach(
            f"nobody listens at {where}; start the server with `shepherd silos server`"
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
        raise OutOfReach(f"the server at {where} closed the connection at once; {_LOOK}") from error
    except ssl.SSLError as error:
        if "alert" in str(error).lower():
            raise SilosError(_refusal(kit, where, error)) from error
        raise SilosError(f"what listens at {where} is no server of a federation; see to the port") from error


def _distrust(kit: Kit, error: ssl.SSLCertVerificationError, where: str) -> str:
    if error.verify_code in (_NOT_YET_VALID, _EXPIRED):
        ended = error.verify_code == _EXPIRED
        state, way = ("has ended", "give the server a new kit") if ended else ("is not valid yet", "wait")
        return (
            f"the certificate of the server at {where} {state} by this machine's clock "
            f"({datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC); set the clock, or {way}"
        )
    return (
        f"the server at {where} is of another federation: the authority of this kit ({kit.folder}) did not "
        f"sign its certificate ({error.verify_message}); use the kit that was made with that server"
    )


def _require_identity(kit: Kit, secure: ssl.SSLSocket, where: str) -> None:
    name = common_name(secure.getpeercert())
    if name != kit.identity:
        raise SilosError(
            f"what answers at {where} shows the certificate of {name}, and this kit expects {kit.identity}; "
            "see to the address and to who listens there"
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
        "removed, the clocks are apart or the kit is an old one: the server's log says which"
        f"{new if age < _NEW else ''}"
    )


def _alert(error: OSError) -> str:
    """What the other end said, without OpenSSL's frame.

    >>> _alert(ssl.SSLError(1, "[SSL: TLSV1_ALERT_UNKNOWN_CA] tlsv1 alert unknown ca (_ssl.c:2580)"))
    'alert unknown ca'
    """
    if not isinstance(error, ssl.SSLError):
        return error.strerror or "it closed the connection"
    text = str(error).partition("] ")[2].partition(" (_ssl")[0]
    return text[text.find("alert") :] if "alert" in text else text or "it closed the connection"


def _skew(answer: bytes) -> float | None:
    """Seconds by which this clock is ahead of the one in the answer's Date; None where there is none."""
    for line in answer.split(b"\r\n"):
        name, _, value = line.partition(b":")
        if name.lower() == b"date":
            try:
                return time.time() - parsedate_to_datetime(value.decode("latin1").strip()).timestamp()
            except ValueError:
                return None
    return None
