"""One Unix socket between the processes of a site, for their owner alone: ask, and be answered.

A message is its length in eight bytes, most significant first, and then so many bytes; a connection carries
one question and one answer. The socket's folder is closed to everybody else (0700), the socket is 0600, and
where the system tells who is calling, a stranger is hung up on.
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

ADDRESS, SOCKET = "trainer.address", "trainer.sock"
MOST_PATH = 100  # bytes: Linux takes 107, macOS 103
MOST_MESSAGE = 2**32  # bytes
MOST_CALLERS = 64  # at once: each may bring a message
POLL = 0.2  # seconds between two looks at whether to stop
PATIENCE = 60.0  # seconds for a question to come in whole, or an answer to be taken
_LENGTH = struct.Struct(">Q")

log = logging.getLogger(__name__)


def place(home: Path) -> Path:
    """Where the trainer of this home shall listen; written to `home`/trainer.address for `address`.

    In `home` itself, unless its path is longer than the system takes for a socket.

    Raises:
        LocalError: the home cannot be written.
    """
    with _told(home):
        home.mkdir(parents=True, exist_ok=True)
        path = home.resolve() / SOCKET
        if len(os.fsencode(path)) > MOST_PATH:
            path = _short(home) / SOCKET
        beside = home / f"{ADDRESS}.tmp"
        beside.write_text(str(path), encoding="utf8")
        beside.replace(home / ADDRESS)
    return path


def address(home: Path) -> Path:
    """Where the trainer of this home listens, as `place` wrote it.

    Raises:
        NotListening: no trainer was ever started here.
    """
    try:
        return Path((home / ADDRESS).read_text(encoding="utf8"))
    except (OSError, ValueError) as error:
        raise NotListening(
            f"no trainer was started in {home}; start it with `shepherd silos site`"
        ) from error


def _short(home: Path) -> Path:
    """A folder with a short path that nobody else can enter: last time's, where it is there."""
    try:
        last = address(home).parent
        if _is_ours(last):
            return last
    except LocalError:
        pass
    made = tempfile.mkdtemp(prefix="shepherd-")
    return Path(made if len(made) < MOST_PATH - len(SOCKET) else tempfile.mkdtemp("", "shepherd-", "/tmp"))


def _is_ours(folder: Path) -> bool:
    try:
        found = folder.lstat()
    except OSError:
        return False
    mine = stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid()
    return mine and stat.S_IMODE(found.st_mode) == 0o700 and len(os.fsencode(folder / SOCKET)) <= MOST_PATH


def serve(
    path: Path,
    handle: Callable[[bytes], bytes],
    ready: Callable[[], None] = lambda: None,
    stopped: threading.Event | None = None,
    most_bytes: int = MOST_MESSAGE,
) -> None:
    """Answer each question with `handle`, in a thread of its own, until `stopped` is set.

    Args:
        ready: called once, as soon as questions can be asked.
        most_bytes: of a question; who announces more is hung up on before anything is read.

    Raises:
        LocalError: another process serves there, or the folder cannot be used or closed to others.
    """
    with _told(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.parent.chmod(0o700)
        with _held(path), socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
            path.unlink(missing_ok=True)  # a killed process left it
            listener.bind(str(path))
            path.chmod(0o600)
            listener.listen()
            listener.settimeout(POLL)
            ready()
            try:
                _accept(listener, handle, stopped or threading.Event(), most_bytes)
            finally:
                path.unlink(missing_ok=True)


@contextmanager
def _held(path: Path) -> Iterator[None]:
    """One process at a time, and no longer than it lives."""
    try:
        handle = lock.acquire(path.with_suffix(".lock"))
    except BlockingIOError:
        raise LocalError(f"another trainer serves {path}; stop it, or give this one its own folder") from None
    try:
        yield
    finally:
        os.close(handle)


def _accept(
    listener: socket.socket,
    handle: Callable[[bytes], bytes],
    stopped: threading.Event,
    most_bytes: int,
) -> None:
    free = threading.BoundedSemaphore(MOST_CALLERS)
    while not stopped.is_set():
        try:
            connection, _ = listener.accept()
        except TimeoutError:
            continue
        except OSError as error:  # too many files are open, say: others may go
            log.error("nobody can be answered now (%s)", error.strerror)
            stopped.wait(POLL)
            continue
        if not free.acquire(blocking=False):
            log.warning("%d callers are being answered, and one more was hung up on", MOST_CALLERS)
            connection.close()
            continue
        threading.Thread(target=_answer, args=(connection, handle, most_bytes, free), daemon=True).start()


def _answer(
    connection: socket.socket,
    handle: Callable[[bytes], bytes],
    most_bytes: int,
    free: threading.BoundedSemaphore,
) -> None:
    with connection, _given_back(free):
        try:
            if (caller := _peer(connection)) not in (None, os.geteuid()):
                log.warning("user %s called on the trainer's socket and was hung up on", caller)
                return
            question = _receive(connection, monotonic() + PATIENCE, most_bytes)
            _send(connection, handle(question), monotonic() + PATIENCE)
        except _TooLong as error:
            log.warning("a caller was hung up on: %s", error)
        except OSError as error:
            log.info("whoever asked has gone (%s)", type(error).__name__)
        except Exception as error:  # its message may hold anything
            log.error("a question was not answered (%s)", type(error).__name__)


@contextmanager
def _given_back(free: threading.BoundedSemaphore) -> Iterator[None]:
    try:
        yield
    finally:
        free.release()


class _TooLong(ConnectionError):
    """More was announced than is taken."""


def _peer(connection: socket.socket) -> int | None:
    """The user at the other end; None where the system does not tell."""
    option = getattr(socket, "SO_PEERCRED", None)
    if option is None:
        return None
    credentials = connection.getsockopt(socket.SOL_SOCKET, option, struct.calcsize("3i"))
    return int(struct.unpack("3i", credentials)[1])


def ask(path: Path, message: bytes, timeout: float) -> bytes:
    """Send one question to who serves `path`, and wait `timeout` seconds for the whole answer.

    Raises:
        NotListening: nobody serves there.
        LocalError: it went away in the middle, or took too long.
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
            raise LocalError(f"the trainer at {path} gave no answer within {timeout:g} s") from error
        except OSError as error:
            raise LocalError(f"the trainer at {path} went away in the middle; ask it again") from error


def _send(connection: socket.socket, message: bytes, until: float) -> None:
    for part in (_LENGTH.pack(len(message)), message):
        connection.settimeout(_left(until))
        connection.sendall(part)


def _receive(connection: socket.socket, until: float, most_bytes: int = MOST_MESSAGE) -> bytes:
    (size,) = _LENGTH.unpack(_exactly(connection, _LENGTH.size, until))
    if size > most_bytes:
        raise _TooLong(f"a message of {size} bytes was announced, and {most_bytes} are taken")
    return _exactly(connection, size, until)


def _exactly(connection: socket.socket, size: int, until: float) -> bytes:
    buffer = bytearray(size)
    rest = memoryview(buffer)
    while rest:
        connection.settimeout(_left(until))
        got = connection.recv_into(rest)
        if not got:
            raise ConnectionError("the other end has gone")
        rest = rest[got:]
    return bytes(buffer)


def _left(until: float) -> float:
    left = until - monotonic()
    if left <= 0:
        raise TimeoutError
    return left


@contextmanager
def _told(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise LocalError(
            f"{error.filename or folder} cannot be used ({error.strerror or error}); check that it belongs to"
            " the user who runs this"
        ) from error
