"""A TLS server as FLARE's is: asyncio, certificates from everybody, an HTTP answer to any question."""

from __future__ import annotations

import asyncio
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path


@dataclass
class Door:
    """A server that answers each line it is sent; for `ahead` seconds its clock is ahead."""

    port: int


@contextmanager
def opened(kit: Path, *, ahead: float = 0.0, silent: bool = False, shows: str = "server") -> Iterator[Door]:
    """Run the server of a kit on a free port, in a thread; `silent`, it hangs up on every question.

    Args:
        shows: "client" has a member of the federation pose as the server, with the certificate of its kit.
    """
    ready, door = threading.Event(), Door(0)
    ways: list[Callable[[], object]] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while await reader.readline() and not silent:
                date = format_datetime(datetime.now(UTC) + timedelta(seconds=ahead), usegmt=True)
                writer.write(f"HTTP/1.1 404 Not Found\r\nDate: {date}\r\n\r\n".encode())
                await writer.drain()
        except OSError:
            pass
        finally:
            writer.close()

    async def serve() -> None:
        loop, done = asyncio.get_running_loop(), asyncio.Event()
        server = await asyncio.start_server(answer, "127.0.0.1", 0, ssl=_context(kit, shows))
        door.port = server.sockets[0].getsockname()[1]
        ways.append(lambda: loop.call_soon_threadsafe(done.set))
        ready.set()
        await done.wait()
        server.close()
        await asyncio.sleep(0.05)  # for transports to end by themselves

    thread = threading.Thread(target=asyncio.run, args=(serve(),))
    thread.start()
    try:
        assert ready.wait(10)
        yield door
    finally:
        ways[0]()
        thread.join()


def _context(kit: Path, shows: str) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_verify_locations(kit / "startup" / "rootCA.pem")
    context.load_cert_chain(kit / "startup" / f"{shows}.crt", kit / "startup" / f"{shows}.key")
    return context
