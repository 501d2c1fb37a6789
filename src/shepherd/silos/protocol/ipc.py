"""Request and reply over a Unix socket between the processes of a site, open to their owner alone.

A message is its length in eight bytes, most significant first, followed by that many bytes; a connection
carries one request and one reply. The socket's folder is closed to all other users (0700), the socket is
0600, and a connection from another user is closed where the system says who is calling.
"""

from __future__ import annotations

import logging
import os
import socket
import stat
import struct
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from time import monotonic

from shepherd.errors import LocalError, NotListening
from shepherd.io import lock

ADDRESS_FILE, SOCKET_FILE = "trainer.address", "trainer.sock"
MAX_SOCKET_PATH_BYTES = 100  # bytes: Linux takes 107, macOS 103
MAX_MESSAGE_BYTES = 2**32  # bytes
MAX_CONNECTIONS = 64  # at once: each may bring a message
STOP_POLL_S = 0.2  # seconds between two looks at whether to stop
TRANSFER_TIMEOUT_S = 60.0  # seconds for a question to come in whole, or an answer to be taken
_LENGTH = struct.Struct(">Q")

log = logging.getLogger(__name__)


def choose_address(home: Path) -> Path:
    """Choose the path that the trainer of `home` listens on, and write it to `home`/trainer.address.

    The socket is in `home` itself, unless that path is longer than the system allows for a socket.

    Raises:
        LocalError: the home cannot be written.
    """
    with _os_errors_as_local_error(home):
        home.mkdir(parents=True, exist_ok=True)
        path = home.resolve() / SOCKET_FILE
        if len(os.fsencode(path)) > MAX_SOCKET_PATH_BYTES:
            path = _short_folder(home) / SOCKET_FILE
        temporary = home / f"{ADDRESS_FILE}.tmp"
        temporary.write_text(str(path), encoding="utf8")
        temporary.replace(home / ADDRESS_FILE)
    return path


def address(home: Path) -> Path:
    """The path that the trainer of `home` listens on, as `choose_address` wrote it.

    Raises:
        NotListening: no trainer was ever started here.
    """
    try:
        return Path((home / ADDRESS_FILE).read_text(encoding="utf8"))
    except (OSError, ValueError) as error:
        raise NotListening(
            f"no trainer has been started in {home}; start it with `shepherd silos site`"
        ) from error


def _short_folder(home: Path) -> Path:
    """A folder with a short path that no other user can enter: the previous one if it still exists."""
    try:
        last = address(home).parent
        if _is_ours(last):
            return last
    except LocalError:
        pass
    made = tempfile.mkdtemp(prefix="shepherd-")
    return Path(
        made
        if len(made) < MAX_SOCKET_PATH_BYTES - len(SOCKET_FILE)
        else tempfile.mkdtemp("", "shepherd-", "/tmp")
    )


def _is_ours(folder: Path) -> bool:
    try:
        found = folder.lstat()
    except OSError:
        return False
    mine = stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid()
    return (
        mine
        and stat.S_IMODE(found.st_mode) == 0o700
        and len(os.fsencode(folder / SOCKET_FILE)) <= MAX_SOCKET_PATH_BYTES
    )


def serve(
    path: Path,
    handle: Callable[[bytes], bytes],
    ready: Callable[[], None] = lambda: None,
    stopped: threading.Event | None = None,
    max_bytes: int = MAX_MESSAGE_BYTES,
) -> None:
    """Answer each request with `handle`, in a thread of its own, until `stopped` is set.

    Args:
        ready: called once, as soon as requests are accepted.
        max_bytes: largest request; the connection of a larger one is closed before its content is read.

    Raises:
        LocalError: another process serves this path, or the folder cannot be used or closed to others.
    """
    with _os_errors_as_local_error(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.parent.chmod(0o700)
        with _lock_socket(path), socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
            path.unlink(missing_ok=True)  # left by a killed process
            listener.bind(str(path))
            path.chmod(0o600)
            listener.listen()
            listener.settimeout(STOP_POLL_S)
            ready()
            try:
                _accept_connections(listener, handle, stopped or threading.Event(), max_bytes)
            finally:
                path.unlink(missing_ok=True)


@contextmanager
def _lock_socket(path: Path) -> Iterator[None]:
    """Hold the lock of the socket, so that one process at a time serves it."""
    try:
        handle = lock.acquire(path.with_suffix(".lock"))
    except BlockingIOError:
        raise LocalError(
            f"another trainer already serves {path}; stop it, or use another folder for this one"
        ) from None
    try:
        yield
    finally:
        os.close(handle)


def _accept_connections(
    listener: socket.socket,
    handle: Callable[[bytes], bytes],
    stopped: threading.Event,
    max_bytes: int,
) -> None:
    free = threading.BoundedSemaphore(MAX_CONNECTIONS)
    while not stopped.is_set():
        try:
            connection, _ = listener.accept()
        except TimeoutError:
            continue
        except OSError as error:  # such as too many open files, which passes
            log.error("cannot accept a connection now (%s); trying again", error.strerror)
            stopped.wait(STOP_POLL_S)
            continue
        if not free.acquire(blocking=False):
            log.warning("refused a connection: %d are open already", MAX_CONNECTIONS)
            connection.close()
            continue
        threading.Thread(target=_answer, args=(connection, handle, max_bytes, free), daemon=True).start()


def _answer(
    connection: socket.socket,
    handle: Callable[[bytes], bytes],
    max_bytes: int,
    free: threading.BoundedSemaphore,
) -> None:
    with connection, _release_when_done(free):
        try:
            if (caller := _peer_uid(connection)) not in (None, os.geteuid()):
                log.warning("refused a connection to the trainer's socket from user %s", caller)
                return
            request = _receive(connection, monotonic() + TRANSFER_TIMEOUT_S, max_bytes)
            _send(connection, handle(request), monotonic() + TRANSFER_TIMEOUT_S)
        except _TooLong as error:
            log.warning("closed a connection: %s", error)
        except OSError as error:
            log.info("the caller has disconnected (%s)", type(error).__name__)
        except Exception as error:  # its message may hold anything
            log.error("a request was not answered (%s)", type(error).__name__)


@contextmanager
def _release_when_done(free: threading.BoundedSemaphore) -> Iterator[None]:
    try:
        yield
    finally:
        free.release()


class _TooLong(ConnectionError):
    """The announced length is above the limit."""


def _peer_uid(connection: socket.socket) -> int | None:
    """The user id at the other end; None where the system does not provide it."""
    option = getattr(socket, "SO_PEERCRED", None)
    if option is None:
        return None
    credentials = connection.getsockopt(socket.SOL_SOCKET, option, struct.calcsize("3i"))
    return int(struct.unpack("3i", credentials)[1])


def ask(path: Path, message: bytes, timeout: float) -> bytes:
    """Send one request to the process that serves `path`, and return its reply.

    Args:
        timeout: seconds until the whole reply has to be here.

    Raises:
        NotListening: no process serves this path.
        LocalError: it closed the connection early, or did not reply in time.
    """
    until = monotonic() + timeout
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        try:
            connection.settimeout(timeout)
            connection.connect(str(path))
        except (OSError, ValueError) as error:
            raise NotListening(
                f"no trainer listens at {path}; start it with `shepherd silos site`"
            ) from error
        try:
            _send(connection, message, until)
            return _receive(connection, until)
        except TimeoutError as error:
            raise LocalError(
                f"the trainer at {path} did not reply within {timeout:g} s; see its log"
            ) from error
        except OSError as error:
            raise LocalError(
                f"the trainer at {path} closed the connection before it had replied; try again"
            ) from error


def _send(connection: socket.socket, message: bytes, until: float) -> None:
    # an empty message is whole with its length: by then the other end may have replied and closed
    for part in filter(None, (_LENGTH.pack(len(message)), message)):
        connection.settimeout(_seconds_left(until))
        connection.sendall(part)


def _receive(connection: socket.socket, until: float, max_bytes: int = MAX_MESSAGE_BYTES) -> bytes:
    (size,) = _LENGTH.unpack(_receive_exactly(connection, _LENGTH.size, until))
    if size > max_bytes:
        raise _TooLong(f"a message of {size} bytes was announced, and the limit is {max_bytes}")
    return _receive_exactly(connection, size, until)


def _receive_exactly(connection: socket.socket, size: int, until: float) -> bytes:
    buffer = bytearray(size)
    rest = memoryview(buffer)
    while rest:
        connection.settimeout(_seconds_left(until))
        got = connection.recv_into(rest)
        if not got:
            raise ConnectionError("the other end closed the connection")
        rest = rest[got:]
    return bytes(buffer)


def _seconds_left(until: float) -> float:
    left = until - monotonic()
    if left <= 0:
        raise TimeoutError
    return left


@contextmanager
def _os_errors_as_local_error(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise LocalError(
            f"{error.filename or folder} cannot be used ({error.strerror or error}); check that it belongs to"
            " the user who runs this process"
        ) from error
