"""A relay in front of a server's port that keeps what goes over the wire."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field


@dataclass(slots=True)
class Relay:
    """What was relayed so far, connection by connection."""

    port: int
    to_server: list[bytearray] = field(default_factory=list)
    to_client: list[bytearray] = field(default_factory=list)

    def sent(self) -> bytes:
        """All that the first client sent."""
        return bytes(self.to_server[0])

    def all(self) -> bytes:
        """All that went either way."""
        return b"\n".join(bytes(one) for one in (*self.to_server, *self.to_client))


@contextmanager
def recording(target: tuple[str, int], port: int = 0) -> Iterator[Relay]:
    """Relay to the target, on `port` or on one that is free, until the end of the block."""
    with socket.create_server(("127.0.0.1", port)) as listener:
        relay = Relay(listener.getsockname()[1])
        ends: list[socket.socket] = []
        threading.Thread(target=_accept, args=(listener, target, relay, ends), daemon=True).start()
        try:
            yield relay
        finally:
            listener.close()
            for end in ends:
                with contextlib.suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)
                end.close()


def _accept(
    listener: socket.socket, target: tuple[str, int], relay: Relay, ends: list[socket.socket]
) -> None:
    with contextlib.suppress(OSError):  # closed
        while True:
            client, _ = listener.accept()
            try:
                server = socket.create_connection(target, 10)
            except OSError:  # not up yet
                client.close()
                continue
            server.settimeout(None)
            ends += [client, server]
            for kept, source, sink in (
                (relay.to_server, client, server),
                (relay.to_client, server, client),
            ):
                kept.append(bytearray())
                threading.Thread(target=_carry, args=(kept[-1], source, sink), daemon=True).start()


def _carry(kept: bytearray, source: socket.socket, sink: socket.socket) -> None:
    with contextlib.suppress(OSError):
        try:
            while part := source.recv(65536):
                kept += part
                sink.sendall(part)
        finally:
            sink.shutdown(socket.SHUT_WR)
