"""The gate without gradio: what passes, gets a cookie, or is refused, by hand-made ASGI messages."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from shepherd.ui import access
from shepherd.ui.access import Token
from shepherd.ui.chat.gate import STARTUP_PATH, Gate

TOKEN = Token()
COOKIE = TOKEN.cookie(7860).partition(";")[0]


def asked(
    path: str,
    query: str = "",
    cookie: str = "",
    kind: str = "http",
    method: str = "GET",
    origin: str = "",
    shared: bool = False,
) -> list[Any]:
    """The messages that come back."""
    sent: list[Any] = []

    async def page(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"x", b"y")]})
        await send({"type": "http.response.body", "body": b"the page"})

    async def send(message: Any) -> None:
        sent.append(message)

    async def receive() -> Any:
        raise AssertionError("nothing is read")

    scope = {"type": kind, "path": path, "query_string": query.encode(), "server": ("127.0.0.1", 7860)}
    scope |= {"method": method, "headers": [(b"host", b"localhost:7860"), (b"cookie", cookie.encode())]}
    scope["headers"] += [(b"origin", origin.encode("latin1"))] * bool(origin)
    asyncio.run(Gate(page, TOKEN, shared=shared)(scope, receive, send))
    return sent


def headers(answer: list[Any]) -> dict[bytes, bytes]:
    return dict(answer[0]["headers"])


def test_the_first_visit_gets_a_cookie_and_goes_on_without_the_token() -> None:
    answer = asked("/", f"token={TOKEN.secret}")
    assert answer[0]["status"] == 303
    assert headers(answer)[b"location"] == b"/"
    assert headers(answer)[b"set-cookie"].decode() == TOKEN.cookie(7860)
    assert headers(answer)[b"referrer-policy"] == b"no-referrer"


@pytest.mark.parametrize(
    ("path", "query", "cookie"),
    [
        ("/", "", f"a=b; {COOKIE}"),
        ("/config", f"token={TOKEN.secret}", ""),
        ("/x", "token=wrong", COOKIE),
        (STARTUP_PATH, "", ""),
    ],
    ids=["cookie", "token", "both", "open"],  # a secret's text would differ at each collection
)
def test_who_has_the_token_or_the_cookie_sees_the_page(path: str, query: str, cookie: str) -> None:
    answer = asked(path, query, cookie)
    assert (answer[0]["status"], answer[1]["body"]) == (200, b"the page")
    assert headers(answer)[b"x"] == b"y"
    if path != STARTUP_PATH:
        assert headers(answer)[b"referrer-policy"] == b"no-referrer"


@pytest.mark.parametrize(
    "path", ["/", "/config", "/gradio_api/queue/join", f"{STARTUP_PATH}/x", "/x/../config"]
)
@pytest.mark.parametrize(
    "query",
    ["", "token=", "token=wrong", f"Token={TOKEN.secret}", "a=%ff&token=%ff"],
    ids=["none", "empty", "wrong", "capital", "bytes"],
)
@pytest.mark.parametrize(
    "cookie", ["", COOKIE[:-1], COOKIE.replace("7860", "7861")], ids=["none", "cut", "another port's"]
)
def test_nobody_else_does(path: str, query: str, cookie: str) -> None:
    answer = asked(path, query, cookie, method="POST")
    assert (answer[0]["status"], answer[1]["body"].decode()) == (403, access.REFUSED)
    assert len(answer) == 2


OTHER_PAGES = (
    *("http://localhost:9999", "http://localhost", "http://127.0.0.1:7860", "https://evil.example"),
    *("http://localhost:7860.evil.example", "null", "http://[", "\xff"),
)


@pytest.mark.parametrize("origin", OTHER_PAGES)
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_another_page_is_refused_though_the_browser_sends_the_cookie(origin: str, method: str) -> None:
    """Cookies know no ports, and for SameSite all of this machine's are one site."""
    answer = asked("/gradio_api/queue/join", cookie=COOKIE, method=method, origin=origin)
    assert answer[0]["status"] == 403
    with_token = asked("/gradio_api/queue/join", f"token={TOKEN.secret}", method=method, origin=origin)
    assert with_token[0]["status"] == 403
    assert asked("/ws", cookie=COOKIE, kind="websocket", origin=origin)[0]["type"] == "websocket.close"


def test_the_page_itself_and_a_public_link_are_no_other_page() -> None:
    for origin, shared in (("http://localhost:7860", False), ("https://it.gradio.live", True)):
        answer = asked("/queue", cookie=COOKIE, method="POST", origin=origin, shared=shared)
        assert answer[0]["status"] == 200
        assert headers(answer)[b"x-frame-options"] == b"DENY"
        assert headers(answer)[b"cross-origin-resource-policy"] == b"same-origin"
        assert headers(answer)[b"x-content-type-options"] == b"nosniff"


def test_a_socket_is_closed_and_a_head_is_told_what_gradio_understands() -> None:
    assert asked("/ws", kind="websocket") == [{"type": "websocket.close", "code": 1008}]
    assert asked("/", method="HEAD")[0]["status"] == 401
    assert asked("", kind="lifespan")[0]["status"] == 200
