"""Who may look at a page of this machine: whoever has the token of the printed address, as with Jupyter.

A port of loopback can be reached by every user of the machine. The first visit with the token gives the
browser a cookie, so that the token need not stand in the address that it shows and remembers.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field
from hmac import compare_digest
from urllib.parse import parse_qs

REFUSED = "this page is for whoever started it: open the address that was printed, with its token\n"
HEADERS = {
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}
"""Of every answer: no other page is told the address, and the token in it, or shows or reads the answer."""


def is_other_page(hosts: Sequence[str], origins: Sequence[str]) -> bool:
    """Whether another page asks than the one at the host that is asked, by the headers `Host` and `Origin`.

    A browser sends the cookie of this machine to all its ports, and also for what another of them asks for.
    It says who asks, unless a person follows a link.
    """
    own = {host.lower() for host in hosts}
    return any(origin.lower().partition("://")[2] not in own for origin in origins)


@dataclass(frozen=True, slots=True)
class Token:
    """A secret of one server, drawn anew each time that it starts."""

    secret: str = field(default_factory=lambda: secrets.token_urlsafe(32), repr=False)

    def address(self, url: str) -> str:
        """The address with the token, for the person at the terminal alone."""
        return f"{url}?token={self.secret}"

    def is_in(self, query: str) -> bool:
        """Whether the query of an address, the part behind its `?`, holds the token."""
        return any(map(self._is, parse_qs(query).get("token", ())))

    def is_among(self, cookies: str, port: int) -> bool:
        """Whether a header `Cookie` holds the one that `cookie` gave."""
        pairs = (cookie.strip().partition("=") for cookie in cookies.split(";"))
        return any(name == _name(port) and self._is(value) for name, _, value in pairs)

    def cookie(self, port: int) -> str:
        """The header `Set-Cookie`; its name holds the port, since all ports of a machine share cookies."""
        return f"{_name(port)}={self.secret}; HttpOnly; SameSite=Lax; Path=/"

    def _is(self, text: str) -> bool:
        return compare_digest(text.encode("utf8", "replace"), self.secret.encode())


def _name(port: int) -> str:
    return f"shepherd-{port}"
