"""Serve a run's report on loopback while it trains: GET only, and only with the token of its address."""

from __future__ import annotations

import hashlib
import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from socketserver import TCPServer
from threading import Event, Lock, Thread
from typing import Any

from shepherd.errors import ShepherdError
from shepherd.io.lock import is_held
from shepherd.run.folder import LOCK
from shepherd.ui import access
from shepherd.ui.access import Token
from shepherd.ui.report import page
from shepherd.ui.report.gather import collect
from shepherd.ui.report.writing import dumped

HOST = "127.0.0.1"
_HOST_NAMES = (HOST, "localhost")  # a request for another name is from a page of another site
_SOURCES = (
    "run.toml",
    "versions.json",
    "rounds.jsonl",
    "answers.jsonl",
    "data/index.json",
    "compare/comparison.json",
    "compare/seed-*/*/rounds.jsonl",
)
_HEADERS = {"Cache-Control": "no-cache", **access.HEADERS}


def watch(folder: str | Path, port: int = 0, echo: Callable[[str], object] = print) -> None:
    """Serve the report of a run until Ctrl-C.

    Args:
        folder: the run folder.
        port: of 127.0.0.1; 0 takes a free one.
        echo: gets a line with the address, and one at the end.

    Raises:
        FolderError: there is no run in the folder.
        ShepherdError: the port is not available.
    """
    with serving(folder, port) as url:
        echo(f"the report of {folder} is at {url} and follows the run; stop it with Ctrl-C")
        try:
            Event().wait()
        except KeyboardInterrupt:
            echo("stopped; `shepherd report` writes the page as a file")


@contextmanager
def serving(folder: str | Path, port: int = 0) -> Iterator[str]:
    """Serve the report from a thread while the block runs; yields its address, which contains a token.

    Requests without the token are refused.

    Raises:
        FolderError: there is no run in the folder.
        ShepherdError: the port is not available.
    """
    collect(folder)
    server = _bound_server(port)
    server.live, server.token = _Live(Path(folder)), Token()
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.1}, daemon=True)
    thread.start()
    try:
        yield server.token.address(f"http://{HOST}:{server.server_port}/")
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False  # do not wait for a browser that keeps a connection open
    allow_reuse_address = os.name != "nt"  # on Windows two servers could share a port
    live: _Live
    token: Token

    def server_bind(self) -> None:
        """Bind without a name lookup of this machine."""
        TCPServer.server_bind(self)
        self.server_name, self.server_port = HOST, self.server_address[1]

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignore readers that disconnect."""


def _bound_server(port: int) -> _Server:
    try:
        return _Server((HOST, port), _Handler)
    except (OSError, OverflowError) as error:
        raise ShepherdError(
            f"port {port} of {HOST} is not available ({getattr(error, 'strerror', None) or error}); name"
            " another with --port, or leave --port out for a free one"
        ) from error


def _tag(body: str) -> str:
    return f'"{hashlib.sha256(body.encode()).hexdigest()[:32]}"'


@dataclass(slots=True)
class _Live:
    """The report, read again when its files have changed; safe to use from several threads."""

    folder: Path
    lock: Lock = field(default_factory=Lock)
    seen: object = None
    report: dict[str, Any] | None = None
    main: str = ""

    def current(self) -> tuple[dict[str, Any] | None, str]:
        """The report (None while the folder cannot be read) and the content of <main>."""
        with self.lock:
            now = signature(self.folder)
            if now != self.seen:
                self._read()
                self.seen = now
            return self.report, self.main

    def _read(self) -> None:
        try:
            self.report = collect(self.folder)
            self.main = page.main(self.report)
        except ShepherdError as error:
            self.report, self.main = None, page.trouble(str(error))


def signature(folder: Path) -> object:
    """A value that changes when a file of the report changes, or the run starts or stops."""
    found = sorted(path for pattern in _SOURCES for path in folder.glob(pattern))
    return is_held(folder / LOCK), [entry for path in found if (entry := _entry(path))]


def _entry(path: Path) -> tuple[str, int, int] | None:
    try:
        stat = path.stat()
    except OSError:  # replaced at this moment
        return None
    return (str(path), stat.st_mtime_ns, stat.st_size)


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    server_version, sys_version = "shepherd", ""
    timeout = 30  # seconds for a client to send its request

    def do_GET(self) -> None:
        if not self._names_this_host():
            self._send(HTTPStatus.MISDIRECTED_REQUEST, "text/plain", "use the host name localhost\n")
            return
        path, _, query = self.path.partition("?")
        known = self.server.token.is_in(query)
        hosts, origins = (self.headers.get_all(name, []) for name in ("Host", "Origin"))
        if access.is_other_page(hosts, origins) or not (known or self._has_cookie()):
            self._send(HTTPStatus.FORBIDDEN, "text/plain", access.REFUSED)
            return
        report, main = self.server.live.current()
        match path:
            case "/" if known:
                cookie = self.server.token.cookie(self.server.server_port)
                self._send(
                    HTTPStatus.SEE_OTHER, "text/plain", "see /\n", {"Location": "/", "Set-Cookie": cookie}
                )
            case "/":
                self._send_page(main)
            case "/main":
                self._send_tagged("text/html", main)
            case "/report.json" if report is not None:
                self._send_tagged("application/json", dumped(report))
            case _:
                self._send(HTTPStatus.NOT_FOUND, "text/plain", "not found; there are / and /report.json\n")

    def _refuse(self) -> None:
        self._send(HTTPStatus.METHOD_NOT_ALLOWED, "text/plain", "GET only\n", {"Allow": "GET"})

    do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = do_OPTIONS = _refuse

    def _names_this_host(self) -> bool:
        """Whether the request is for a name of this machine, and not for one that somebody pointed at it."""
        name, _, port = self.headers.get("Host", "").lower().partition(":")
        return name in _HOST_NAMES and port in ("", str(self.server.server_port))

    def _has_cookie(self) -> bool:
        cookies = "; ".join(self.headers.get_all("Cookie", []))
        return self.server.token.is_among(cookies, self.server.server_port)

    def _send_page(self, main: str) -> None:
        nonce = secrets.token_urlsafe(16)
        policy = page.LIVE_POLICY.format(nonce=nonce) + "; frame-ancestors 'none'"
        whole = page.live(self.server.live.folder.resolve().name, main, _tag(main), nonce)
        self._send(HTTPStatus.OK, "text/html", whole, {"Content-Security-Policy": policy})

    def _send_tagged(self, kind: str, body: str) -> None:
        tag = _tag(body)
        if self.headers.get("If-None-Match") == tag:
            self._send(HTTPStatus.NOT_MODIFIED, kind, "", {"ETag": tag})
        else:
            self._send(HTTPStatus.OK, kind, body, {"ETag": tag})

    def _send(self, status: HTTPStatus, kind: str, body: str, more: dict[str, str] | None = None) -> None:
        data = body.encode()
        self.send_response(status)
        headers = {"Content-Type": f"{kind}; charset=utf-8", "Content-Length": str(len(data)), **_HEADERS}
        for name, value in {**headers, **(more or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:
        """Log no requests."""
