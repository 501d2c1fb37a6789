"""Access to a page on loopback: only with the token of the printed address, as in Jupyter.

Every user of a machine can reach its loopback ports. The first visit with the token gives the browser a
cookie, so that the token need not stay in the address that the browser shows and remembers.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field
from hmac import compare_digest
from urllib.parse import parse_qs

REFUSED = "only the person who started this page can open it: use the printed address, with its token\n"
HEADERS = {
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}
"""Headers of every response: no other page learns the address with its token, or shows or reads the page."""


def is_other_page(hosts: Sequence[str], origins: Sequence[str]) -> bool:
    """Whether a request comes from another page than the one it is sent to, by `Host` and `Origin`.

    A browser sends this machine's cookie to all its ports, also with requests that the page of another port
    makes. It states the origin, unless a person follows a link.
    """
    own = {host.lower() for host in hosts}
    return any(origin.lower().partition("://")[2] not in own for origin in origins)


@dataclass(frozen=True, slots=True)
class Token:
    """The secret of one server, drawn each time that it starts."""

    secret: str = field(default_factory=lambda: secrets.token_urlsafe(32), repr=False)

    def address(self, url: str) -> str:
        """The address with the token, to be printed on the terminal only."""
        return f"{url}?token={self.secret}"

    def is_in(self, query: str) -> bool:
        """Whether the query of an address, the part after its `?`, contains the token."""
        return any(map(self._equals, parse_qs(query).get("token", ())))

    def is_among(self, cookies: str, port: int) -> bool:
        """Whether a header `Cookie` contains the cookie of this server at `port`."""
        pairs = (cookie.strip().partition("=") for cookie in cookies.split(";"))
        return any(name == _cookie_name(port) and self._equals(value) for name, _, value in pairs)

    def cookie(self, port: int) -> str:
        """The value of `Set-Cookie`; the name has the port, since all ports of a machine share cookies."""
        return f"{_cookie_name(port)}={self.secret}; HttpOnly; SameSite=Lax; Path=/"

    def _equals(self, text: str) -> bool:
        return compare_digest(text.encode("utf8", "replace"), self.secret.encode())


def _cookie_name(port: int) -> str:
    return f"shepherd-{port}"
