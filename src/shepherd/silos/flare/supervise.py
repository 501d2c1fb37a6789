"""Keeps processes running: restarts what dies, stops everything together, and leaves no orphan.

Each child and all that it starts carry a mark in their environment. It finds them where a process group
would not: FLARE gives each job process a session of its own, and a killed supervisor leaves no record.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import psutil

from shepherd.errors import SilosError
from shepherd.io import lock

MARK = "SHEPHERD_SUPERVISED"
"""The environment variable by which a supervised process is known; its value is "HOME:CHILD:"."""
SHORTEST, LONGEST, STEADY = 1.0, 30.0, 60.0
"""Seconds: the first pause before a restart, the last, and the life after which pauses start anew."""
HELPLESS = 2
"""The code of a child that cannot begin until a person changes something; its last line says what."""
POLITE = 5.0
"""Seconds between asking a process to end and ending it."""
_TICK = 0.1
_LOG, _LOCK = "supervisor.log", ".supervisor.lock"
_MOST_LOG = 5 << 20  # bytes of a log before it is set aside, over the one that was
_LAST_LINES = 20
# The child asks the kernel to end it with us, then becomes what it is to run. A process of its own does so,
# since code between fork and exec may not run in a process with threads.
_BOUND = """
import ctypes, os, sys
if sys.platform == "linux":
    ctypes.CDLL(None, use_errno=True).prctl(1, int(sys.argv[2]))
    if os.getppid() != int(sys.argv[1]):
        sys.exit(1)
os.execvp(sys.argv[3], sys.argv[3:])
"""


@dataclass(frozen=True, slots=True)
class Omen:
    """Lines of a child's output that say what only a person can mend."""

    pattern: str  # a regular expression, searched for in each line; {pid} is the child's process
    sentence: str  # what is said then, once for each life of the child; \\1 is the pattern's first group
    times: int = 1  # so many such lines
    within: float = 60.0  # in so many seconds


@dataclass(frozen=True, slots=True)
class Child:
    """A process to keep running."""

    name: str
    command: Sequence[str]
    environment: Mapping[str, str] = field(default_factory=dict)  # over that of the supervisor
    omens: Sequence[Omen] = ()


def supervise(
    home: Path,
    children: Sequence[Child],
    echo: Callable[[str], None],
    stop: threading.Event,
    before: Callable[[], None] = lambda: None,
) -> None:
    """Run the children until `stop` is set; then end them and all that they started.

    Args:
        home: one supervisor at a time has this folder; logs are in it, bounded in size.
        children: started at once, in this order, and stopped in the other.
        say: takes one line for each event.
        stop: set by a signal's handler, or by another thread.
        before: called once what an earlier supervisor left is gone, before any child is started.

    Raises:
        SilosError: another supervisor has `home`, or a child said as it began what only a person can change.
    """
    home.mkdir(parents=True, exist_ok=True, mode=0o700)
    with _held(home):
        log = _Log(home / _LOG)

        def event(line: str) -> None:
            echo(line)
            log.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {line}")

        for pid in _end_marked(_mark(home)):
            event(f"ended process {pid}, left by a supervisor that was killed")
        before()
        kept = [_Kept(home, child, event) for child in children]
        try:
            while not stop.is_set():
                for one in kept:
                    one.look()
                stop.wait(_TICK)
        finally:
            for one in reversed(kept):
                one.end()
            event("stopped")


@contextlib.contextmanager
def until_signalled() -> Iterator[threading.Event]:
    """An event that SIGTERM and SIGINT set, in place of what they did before. For the main thread."""
    stop = threading.Event()
    former = {s: signal.signal(s, lambda *_: stop.set()) for s in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield stop
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)


def bound(command: Sequence[str], sent: signal.Signals = signal.SIGKILL) -> list[str]:
    """The command as a child of this process that is sent a signal when this process ends, however it ends.

    On Linux; elsewhere it is the command alone.
    """
    return [sys.executable, "-S", "-c", _BOUND, str(os.getpid()), str(int(sent)), *command]


class _Kept:
    """A child and its present life."""

    def __init__(self, home: Path, child: Child, echo: Callable[[str], None]) -> None:
        self._child, self._say = child, echo
        self._mark = f"{_mark(home)}{child.name}:"
        self._log = _Log(home / f"{child.name}.log")
        self._process: subprocess.Popen[str] | None = None
        self._reader: threading.Thread | None = None
        self._pid, self._began, self._due, self._pause = 0, 0.0, 0.0, 0.0
        self._steady = False
        self._last: deque[str] = deque(maxlen=_LAST_LINES)
        self._said: set[str] = set()
        self._seen: dict[Omen, deque[float]] = {}

    def look(self) -> None:
        """Start it if it is time, mourn it if it died."""
        if self._process is None:
            if time.monotonic() >= self._due:
                self._start()
        elif (code := self._process.poll()) is not None:
            self._died(code)

    def end(self) -> None:
        """End it and all that it started, politely first."""
        _end_marked(self._mark)
        if self._process is not None:
            self._process.wait()
            self._forget()

    def _start(self) -> None:
        # the working folder is nobody's library: without the second, its files could be imported
        plain = {"PYTHONUNBUFFERED": "1", "PYTHONSAFEPATH": "1"}
        self._process = subprocess.Popen(
            bound(self._child.command),
            env={**os.environ, **plain, **self._child.environment, MARK: self._mark},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
        )
        self._pid, self._began = self._process.pid, time.monotonic()
        self._said.clear()
        self._seen = {omen: deque(maxlen=omen.times) for omen in self._child.omens}
        self._last.clear()
        assert self._process.stdout is not None
        self._reader = threading.Thread(target=self._read, args=(self._process.stdout,), daemon=True)
        self._reader.start()
        self._say(f"{self._child.name} started (process {self._process.pid})")

    def _died(self, code: int) -> None:
        lived = time.monotonic() - self._began
        _end_marked(self._mark, politely=False)  # its own children are of no use without it
        self._forget()
        self._steady = self._steady or lived > STEADY
        if code == HELPLESS and self._last and not self._steady:  # later, what is in its way may pass
            raise SilosError(self._last[-1])
        self._pause = next_pause(self._pause, lived, SHORTEST, LONGEST)
        self._due = time.monotonic() + self._pause
        why = self._last[-1] if code > 0 and self._last else ""
        self._say(
            f"{self._child.name} {ending(code)} after {lived:.0f} s; starts again in {self._pause:.0f} s"
            + (f"; its last line: {why[:200]}" if why else "")
        )

    def _forget(self) -> None:
        """Let go of a process that has ended; its output is read to the end."""
        if self._reader is not None:
            self._reader.join(timeout=POLITE)
        if self._process is not None and self._process.stdout is not None and not self._reader_alive():
            self._process.stdout.close()
        self._process = self._reader = None

    def _reader_alive(self) -> bool:
        return self._reader is not None and self._reader.is_alive()

    def _read(self, stream: IO[str]) -> None:
        with contextlib.suppress(OSError, ValueError):
            for line in stream:
                self._heard(line.rstrip("\n"))

    def _heard(self, line: str) -> None:
        self._log.write(line)
        if line.strip():
            self._last.append(line.strip())
        for omen, seen in self._seen.items():
            if found := re.search(omen.pattern.replace("{pid}", str(self._pid)), line):
                seen.append(time.monotonic())
                if len(seen) == omen.times and seen[-1] - seen[0] <= omen.within:
                    self._warn(found.expand(omen.sentence))

    def _warn(self, sentence: str) -> None:
        if sentence not in self._said:
            self._said.add(sentence)
            self._say(sentence)


class _Log:
    """A file of lines that never grows beyond twice its bound; a full disk costs lines, never the run."""

    def __init__(self, path: Path) -> None:
        self._path, self._lock = path, threading.Lock()

    def write(self, line: str) -> None:
        with self._lock, contextlib.suppress(OSError):
            if self._path.exists() and self._path.stat().st_size > _MOST_LOG:
                self._path.replace(self._path.with_name(self._path.name + ".1"))
            with open(self._path, "a", encoding="utf8", opener=_owner_only) as file:
                file.write(line + "\n")


def next_pause(last: float, lived: float, shortest: float, longest: float) -> float:
    """Seconds to wait before the next start: twice the last wait, and anew after a steady life."""
    return shortest if lived > STEADY else min(longest, max(shortest, 2 * last))


def ending(code: int) -> str:
    """How a process ended, by its return code.

    >>> ending(0), ending(3), ending(-9)
    ('ended', 'ended with code 3', 'was killed by SIGKILL')
    """
    if code < 0:
        with contextlib.suppress(ValueError):
            return f"was killed by {signal.Signals(-code).name}"
        return f"was killed by signal {-code}"
    return f"ended with code {code}" if code else "ended"


def _owner_only(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def _mark(home: Path) -> str:
    return f"{home.resolve()}:"


def _marked(mark: str) -> list[psutil.Process]:
    """The processes that carry the mark, or one that begins with it; never this one."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if process.pid != os.getpid() and process.environ().get(MARK, "").startswith(mark):
                found.append(process)
    return found


def _end_marked(mark: str, *, politely: bool = True) -> list[int]:
    """End the processes that carry the mark, asking first or not; return their ids."""
    ended: list[int] = []
    while processes := [one for one in _marked(mark) if one.pid not in ended]:  # one may just start another
        if politely:
            _signal(processes, signal.SIGTERM)
            _await_end(processes, POLITE)
        _signal([one for one in processes if not _over(one)], signal.SIGKILL)
        _await_end(processes, POLITE)
        ended += [process.pid for process in processes]
    return ended


def _signal(processes: Sequence[psutil.Process], number: signal.Signals) -> None:
    for process in processes:
        with contextlib.suppress(psutil.Error):
            process.send_signal(number)


def _await_end(processes: Sequence[psutil.Process], seconds: float) -> None:
    ends = time.monotonic() + seconds
    while not all(map(_over, processes)) and time.monotonic() < ends:
        time.sleep(0.02)


def _over(process: psutil.Process) -> bool:
    """Whether it runs no more; an orphan in a container may be nobody's to bury, and is over all the same."""
    try:
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    except psutil.Error:
        return True


@contextlib.contextmanager
def _held(home: Path) -> Iterator[None]:
    """Have `home` to ourselves until the end of this process at the latest."""
    try:
        handle = lock.acquire(home / _LOCK)
    except BlockingIOError:
        raise SilosError(
            f"{home.parent} is running on this machine already; stop that one first, or leave it"
        ) from None
    try:
        yield
    finally:
        os.close(handle)
