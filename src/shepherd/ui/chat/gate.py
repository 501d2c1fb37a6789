"""The gate before the chat page: a middleware that lets in whoever has the token of the printed address.

Gradio's own `auth` asks for a name and a password on a page of its own; it takes no token in an address.
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

OPEN = "/gradio_api/startup-events"
"""Where Gradio asks its own server, without a cookie, to begin; the answer is `true`."""


class Gate:
    """Passes on what comes with the token, or with the cookie that the first visit got for it.

    Not from another page, though; behind a public link (`shared`) the page's own name is not known here.
    """

    def __init__(self, app: App, token: Token, shared: bool = False) -> None:
        self.app = app
        self.token = token
        self.shared = shared

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """As ASGI wants it."""
        if scope["type"] not in ("http", "websocket") or scope["path"] == OPEN:
            await self.app(scope, receive, send)
            return
        port = scope["server"][1]
        known = self.token.is_in(scope["query_string"].decode("latin1"))
        cookies = "; ".join(_values(scope, b"cookie"))
        other = not self.shared and access.is_other_page(_values(scope, b"host"), _values(scope, b"origin"))
        if other or not (known or self.token.is_among(cookies, port)):
            await _refuse(scope, send)
        elif known and scope["type"] == "http" and scope["method"] == "GET" and scope["path"] == "/":
            await _answer(send, 303, "see /\n", {"Location": "/", "Set-Cookie": self.token.cookie(port)})
        else:
            await self.app(scope, receive, _untold(send))


def _values(scope: Message, name: bytes) -> list[str]:
    return [value.decode("latin1") for key, value in scope["headers"] if key == name]


async def _refuse(scope: Message, send: Send) -> None:
    if scope["type"] == "websocket":
        await send({"type": "websocket.close", "code": 1008})
    else:  # by a HEAD Gradio finds out whether its server is there, and takes 401 for a yes and 403 for a no
        await _answer(send, 401 if scope["method"] == "HEAD" else 403, access.REFUSED, {})


async def _answer(send: Send, status: int, text: str, headers: dict[str, str]) -> None:
    body = text.encode()
    named = {"Content-Type": "text/plain; charset=utf-8", "Content-Length": str(len(body)), **headers}
    raw = _raw({**named, **access.HEADERS})
    await send({"type": "http.response.start", "status": status, "headers": raw})
    await send({"type": "http.response.body", "body": body})


def _untold(send: Send) -> Send:
    """As `send`, and no other page is told the address."""

    async def sent(message: Message) -> None:
        if message["type"] == "http.response.start":
            message = {**message, "headers": [*message.get("headers", ()), *_raw(access.HEADERS)]}
        await send(message)

    return sent


def _raw(headers: dict[str, str]) -> list[tuple[bytes, bytes]]:
    return [(name.lower().encode(), value.encode()) for name, value in headers.items()]
