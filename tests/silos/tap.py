"""A hand between FLARE's process and the trainer of a site."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from shepherd.silos.protocol import ipc


@contextmanager
def tapped(home: Path, passed: Callable[[bytes, bytes], bytes]) -> Iterator[None]:
    """Have every answer of the trainer go through `passed`, with the question; what it gives is sent on."""
    real = ipc.address(home)
    tap = home / "tap" / "tap.sock"
    stopped, ready = threading.Event(), threading.Event()

    def handle(asked: bytes) -> bytes:
        return passed(asked, ipc.ask(real, asked, 120.0))

    server = threading.Thread(target=ipc.serve, args=(tap, handle, ready.set, stopped))
    server.start()
    assert ready.wait(10)
    (home / ipc.ADDRESS_FILE).write_text(str(tap))
    try:
        yield
    finally:
        (home / ipc.ADDRESS_FILE).write_text(str(real))
        stopped.set()
        server.join()
