"""Middleware that admits only requests with the token of the printed address to the chat page.

Gradio's own `auth` asks for a name and a password on a page of its own and accepts no token in an address.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from shepherd.ui import access
from shepherd.ui.access import Token

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]

STARTUP_PATH = "/gradio_api/startup-events"
"""Gradio requests it of its own server without a cookie; the response is only `true`."""


class Gate:
    """ASGI middleware that passes on requests with the token, or with the cookie of the first visit.

    Requests from other pages are refused, except behind a public link (`shared`), where the page's own host
    name is not known.
    """

    def __init__(self, app: App, token: Token, shared: bool = False) -> None:
        self.app = app
        self.token = token
        self.shared = shared

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Handle one ASGI connection."""
        if scope["type"] not in ("http", "websocket") or scope["path"] == STARTUP_PATH:
            await self.app(scope, receive, send)
            return
        port = scope["server"][1]
        known = self.token.is_in(scope["query_string"].decode("latin1"))
        cookies = "; ".join(_values(scope, b"cookie"))
        other = not self.shared and access.is_other_page(_values(scope, b"host"), _values(scope, b"origin"))
        if other or not (known or self.token.is_among(cookies, port)):
            await _refuse(scope, send)
        elif known and scope["type"] == "http" and scope["method"] == "GET" and scope["path"] == "/":
            await _respond(send, 303, "see /\n", {"Location": "/", "Set-Cookie": self.token.cookie(port)})
        else:
            await self.app(scope, receive, _with_headers(send))


def _values(scope: Message, name: bytes) -> list[str]:
    return [value.decode("latin1") for key, value in scope["headers"] if key == name]


async def _refuse(scope: Message, send: Send) -> None:
    if scope["type"] == "websocket":
        await send({"type": "websocket.close", "code": 1008})
    else:  # Gradio tests by HEAD whether its server is up; 401 means yes to it, and 403 no
        await _respond(send, 401 if scope["method"] == "HEAD" else 403, access.REFUSED, {})


async def _respond(send: Send, status: int, text: str, headers: dict[str, str]) -> None:
    body = text.encode()
    named = {"Content-Type": "text/plain; charset=utf-8", "Content-Length": str(len(body)), **headers}
    raw = _raw({**named, **access.HEADERS})
    await send({"type": "http.response.start", "status": status, "headers": raw})
    await send({"type": "http.response.body", "body": body})


def _with_headers(send: Send) -> Send:
    """A `send` that adds the headers of `access.HEADERS` to each response."""

    async def sent(message: Message) -> None:
        if message["type"] == "http.response.start":
            message = {**message, "headers": [*message.get("headers", ()), *_raw(access.HEADERS)]}
        await send(message)

    return sent


def _raw(headers: dict[str, str]) -> list[tuple[bytes, bytes]]:
    return [(name.lower().encode(), value.encode()) for name, value in headers.items()]
