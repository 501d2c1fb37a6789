"""The socket between the processes of a site: for their owner alone, and no message half taken."""

from __future__ import annotations

import os
import socket
import stat
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from shepherd.errors import LocalError
from shepherd.silos.protocol import ipc

pytestmark = pytest.mark.skipif(not hasattr(socket, "AF_UNIX"), reason="this platform has no such sockets")


@pytest.fixture
def home() -> Iterator[Path]:
    """A short one: pytest's own may be longer than a socket's path may be."""
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder) / "home"


@contextmanager
def serving(path: Path, handle: Callable[[bytes], bytes]) -> Iterator[None]:
    ready, stopped = threading.Event(), threading.Event()
    thread = threading.Thread(target=ipc.serve, args=(path, handle, ready.set, stopped))
    thread.start()
    assert ready.wait(10)
    try:
        yield
    finally:
        stopped.set()
        thread.join(10)
        assert not thread.is_alive()


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_questions_are_answered_side_by_side(home) -> None:
    both = threading.Barrier(2, timeout=10)  # neither is answered before both are asked

    def handle(question: bytes) -> bytes:
        both.wait()
        return question[::-1]

    path = ipc.choose_address(home)
    with serving(path, handle), ThreadPoolExecutor(2) as pool:
        answers = pool.map(lambda question: ipc.ask(path, question, 10), [b"ab", b"cde"])
        assert list(answers) == [b"ba", b"edc"]


def test_the_socket_and_its_folder_are_closed_to_others(home) -> None:
    home.mkdir(mode=0o755)
    home.chmod(0o777)
    path = ipc.choose_address(home)
    with serving(path, bytes):
        assert (mode(home), mode(path)) == (0o700, 0o600)
        assert ipc.ask(path, b"", 5) == b""
    assert not path.exists()


def test_another_user_is_hung_up_on(home, monkeypatch) -> None:
    asked = []
    monkeypatch.setattr(ipc, "_peer_uid", lambda connection: os.geteuid() + 1)
    path = ipc.choose_address(home)
    with (
        serving(path, lambda question: asked.append(question) or b""),
        pytest.raises(LocalError, match="closed the connection before it had replied"),
    ):
        ipc.ask(path, b"let me in", 5)
    assert asked == []


@pytest.mark.skipif(not hasattr(socket, "SO_PEERCRED"), reason="this system does not tell who is calling")
def test_the_system_tells_who_is_calling() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX)
    with ours, theirs:
        assert ipc._peer_uid(ours) == os.geteuid()


def test_a_long_path_is_replaced_by_a_short_one_that_is_ours(home) -> None:
    deep = home / ("x" * 120)
    path = ipc.choose_address(deep)
    try:
        assert len(os.fsencode(path)) <= ipc.MAX_SOCKET_PATH_BYTES
        assert ipc.address(deep) == path
        assert mode(path.parent) == 0o700
        with serving(path, bytes.upper):
            assert ipc.ask(ipc.address(deep), b"a", 5) == b"A"
        assert ipc.choose_address(deep) == path  # and stays
        path.parent.chmod(0o755)
        another = ipc.choose_address(deep)
        assert another.parent != path.parent  # somebody may have looked in
        another.parent.rmdir()
    finally:
        for left in path.parent.iterdir():
            left.unlink()
        path.parent.rmdir()


def test_a_short_path_stays_in_the_home(home) -> None:
    assert ipc.choose_address(home) == home.resolve() / "trainer.sock" == ipc.address(home)


def test_an_adapter_of_80_megabytes_passes_in_its_bits_without_being_copied_over_and_over(home) -> None:
    message = os.urandom(2**20) * 80
    path = ipc.choose_address(home)
    with serving(path, lambda question: question):
        began = time.process_time()
        assert ipc.ask(path, message, 60) == message
        assert time.process_time() - began < 5  # copying what is there with each piece takes minutes


def test_nobody_there_is_told(home) -> None:
    with pytest.raises(LocalError, match="no trainer has been started in"):
        ipc.address(home)
    path = ipc.choose_address(home)
    with pytest.raises(LocalError, match=r"no trainer listens at .*trainer\.sock; start it"):
        ipc.ask(path, b"", 5)


def test_what_a_killed_trainer_left_is_no_trainer_and_in_nobodys_way(home) -> None:
    path = ipc.choose_address(home)
    program = (
        "import os, sys; from pathlib import Path; from shepherd.silos.protocol import ipc\n"
        "ipc.serve(Path(sys.argv[1]), lambda question: os.kill(os.getpid(), 9))"
    )
    process = subprocess.Popen([sys.executable, "-c", program, str(path)])
    while not path.exists():
        assert process.poll() is None
        time.sleep(0.02)
    with pytest.raises(LocalError, match="closed the connection before it had replied; try again"):
        ipc.ask(path, b"die", 10)
    process.wait()
    assert path.exists()
    with pytest.raises(LocalError, match="no trainer listens"):
        ipc.ask(path, b"", 5)
    with serving(path, bytes.upper):
        assert ipc.ask(path, b"a", 5) == b"A"


def test_two_trainers_do_not_share_a_home(home) -> None:
    path = ipc.choose_address(home)
    with serving(path, bytes.upper):
        with pytest.raises(LocalError, match=r"another trainer already serves .*; stop it"):
            ipc.serve(path, bytes)
        assert ipc.ask(path, b"a", 5) == b"A"


def test_an_answer_that_does_not_come_is_waited_for_so_long_and_no_longer(home) -> None:
    path, free = ipc.choose_address(home), threading.Event()
    with serving(path, lambda question: b"" if free.wait(10) else b"late"):
        began = time.monotonic()
        with pytest.raises(LocalError, match=r"did not reply within 0\.3 s"):
            ipc.ask(path, b"", 0.3)
        assert time.monotonic() - began < 3
        free.set()


def test_an_answer_in_drops_does_not_outlast_its_time(home) -> None:
    path = ipc.choose_address(home)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()

        def drip() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.sendall(struct.pack(">Q", 1000))
                try:
                    for _ in range(1000):
                        connection.sendall(b"x")
                        time.sleep(0.02)
                except OSError:
                    return

        thread = threading.Thread(target=drip)
        thread.start()
        with pytest.raises(LocalError, match="did not reply within"):
            ipc.ask(path, b"", 0.4)
        thread.join()


@pytest.mark.parametrize("said", [b"", b"\0" * 7, struct.pack(">Q", 5) + b"four", struct.pack(">Q", 2**40)])
def test_an_answer_that_breaks_off_is_told(home, said) -> None:
    path = ipc.choose_address(home)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()

        def answer() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(100)
                connection.sendall(said)

        thread = threading.Thread(target=answer)
        thread.start()
        with pytest.raises(LocalError, match="closed the connection before it had replied"):
            ipc.ask(path, b"hello", 5)
        thread.join()


def test_who_asks_and_goes_or_makes_the_trainer_stumble_disturbs_nobody_else(home, caplog) -> None:
    def handle(question: bytes) -> bytes:
        if question == b"stumble":
            raise ValueError("an example's text")
        return b"x" * 2**22

    path = ipc.choose_address(home)
    with serving(path, handle):
        for part in (b"", b"\0\0", struct.pack(">Q", 100) + b"part", struct.pack(">Q", 1) + b"q"):
            with socket.socket(socket.AF_UNIX) as connection:
                connection.connect(str(path))
                connection.sendall(part)
        with pytest.raises(LocalError, match="closed the connection before it had replied"):
            ipc.ask(path, b"stumble", 5)
        assert len(ipc.ask(path, b"", 10)) == 2**22
    assert "ValueError" in caplog.text
    assert "an example's text" not in caplog.text


def test_a_folder_that_is_not_ours_to_use_is_told(home) -> None:
    home.mkdir()
    (home / "file").write_text("")
    with pytest.raises(LocalError, match=r"cannot be used \(.*\); check that it belongs"):
        ipc.choose_address(home / "file" / "inside")
    with pytest.raises(LocalError, match=r"cannot be used \(.*\); check that it belongs"):
        ipc.serve(home / "file" / "trainer.sock", bytes)


def test_a_question_that_is_announced_too_long_is_hung_up_on_unread(home) -> None:
    asked: list[bytes] = []
    path, ready, stopped = ipc.choose_address(home), threading.Event(), threading.Event()
    handle = lambda question: asked.append(question) or b""  # noqa: E731
    thread = threading.Thread(target=ipc.serve, args=(path, handle, ready.set, stopped, 1000))
    thread.start()
    assert ready.wait(10)
    try:
        with pytest.raises(LocalError, match="closed the connection before it had replied"):
            ipc.ask(path, bytes(1001), 5)
        assert ipc.ask(path, bytes(1000), 5) == b""
    finally:
        stopped.set()
        thread.join(10)
    assert asked == [bytes(1000)]


def test_no_more_callers_are_taken_than_can_be_answered(home, monkeypatch) -> None:
    monkeypatch.setattr(ipc, "MAX_CONNECTIONS", 1)
    begun, go = threading.Event(), threading.Event()

    def handle(question: bytes) -> bytes:
        begun.set()
        go.wait(10)
        return question

    path = ipc.choose_address(home)
    with serving(path, handle), ThreadPoolExecutor(1) as pool:
        first = pool.submit(ipc.ask, path, b"a", 10)
        assert begun.wait(10)
        with pytest.raises(LocalError, match="closed the connection before it had replied"):
            ipc.ask(path, b"b", 5)
        go.set()
        assert first.result(10) == b"a"
