"""Keep processes running: restart those that end, stop them together, and leave no orphan.

Each child and all its descendants carry a mark in their environment. The mark finds them where a process
group would not: FLARE starts each job process in a session of its own, and a killed supervisor leaves no
record.
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

MARK_VARIABLE = "SHEPHERD_SUPERVISED"
"""Environment variable that marks a supervised process; its value is "HOME:CHILD:"."""
MIN_PAUSE_S, MAX_PAUSE_S, STEADY_S = 1.0, 30.0, 60.0
"""First and longest pause before a restart, and the running time after which pauses start over."""
EXIT_NEEDS_PERSON = 2
"""Exit code of a child that cannot start until a person fixes something; its last line says what."""
TERMINATE_WAIT_S = 5.0
"""Time between SIGTERM and SIGKILL."""
_TICK_S = 0.1
_LOG, _LOCK = "supervisor.log", ".supervisor.lock"
_MAX_LOG_BYTES = 5 << 20  # size at which a log is rotated; one older log is kept
_KEPT_LINES = 20
# The child asks the kernel to be killed with its parent, then executes the command. This is a program of its
# own, since no code may run between fork and exec in a process with threads.
_BOUND = """
import ctypes, os, sys
if sys.platform == "linux":
    ctypes.CDLL(None, use_errno=True).prctl(1, int(sys.argv[2]))
    if os.getppid() != int(sys.argv[1]):
        sys.exit(1)
os.execvp(sys.argv[3], sys.argv[3:])
"""


@dataclass(frozen=True, slots=True)
class LogAlert:
    """Lines of a child's output that show a fault that only a person can fix."""

    pattern: str  # a regular expression, searched for in each line; {pid} is the child's process
    sentence: str  # reported once for each start of the child; \\1 is the pattern's first group
    times: int = 1  # number of matching lines that trigger it
    within: float = 60.0  # seconds in which they must occur


@dataclass(frozen=True, slots=True)
class Child:
    """A process to keep running."""

    name: str
    command: Sequence[str]
    environment: Mapping[str, str] = field(default_factory=dict)  # over that of the supervisor
    alerts: Sequence[LogAlert] = ()


def supervise(
    home: Path,
    children: Sequence[Child],
    echo: Callable[[str], None],
    stop: threading.Event,
    before: Callable[[], None] = lambda: None,
) -> None:
    """Run the children until `stop` is set; then end them and all their descendants.

    Args:
        home: folder of this supervisor, locked against a second one; has logs of bounded size.
        children: started at once, in this order, and stopped in reverse.
        echo: called with one line for each event.
        stop: set by a signal's handler, or by another thread.
        before: called after leftovers of an earlier supervisor are ended, and before any child starts.

    Raises:
        SilosError: another supervisor uses `home`, or a child cannot start until a person fixes something.
    """
    home.mkdir(parents=True, exist_ok=True, mode=0o700)
    with _exclusive(home):
        log = _Log(home / _LOG)

        def event(line: str) -> None:
            echo(line)
            log.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {line}")

        for pid in _end_marked(_mark(home)):
            event(f"ended process {pid}, left by a supervisor that was killed")
        before()
        kept = [_SupervisedProcess(home, child, event) for child in children]
        try:
            while not stop.is_set():
                for one in kept:
                    one.poll()
                stop.wait(_TICK_S)
        finally:
            for one in reversed(kept):
                one.end()
            event("stopped")


@contextlib.contextmanager
def until_signalled() -> Iterator[threading.Event]:
    """An event that SIGTERM and SIGINT set, instead of their former handlers; for the main thread."""
    stop = threading.Event()
    former = {s: signal.signal(s, lambda *_: stop.set()) for s in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield stop
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)


def bound(command: Sequence[str], sent: signal.Signals = signal.SIGKILL) -> list[str]:
    """A command for a child that gets a signal when this process ends, however it ends.

    On Linux only; on other systems the command gets no signal.
    """
    return [sys.executable, "-S", "-c", _BOUND, str(os.getpid()), str(int(sent)), *command]


class _SupervisedProcess:
    """A child and its current process."""

    def __init__(self, home: Path, child: Child, echo: Callable[[str], None]) -> None:
        self._child, self._say = child, echo
        self._mark = f"{_mark(home)}{child.name}:"
        self._log = _Log(home / f"{child.name}.log")
        self._process: subprocess.Popen[str] | None = None
        self._reader: threading.Thread | None = None
        self._pid, self._began, self._due, self._pause = 0, 0.0, 0.0, 0.0
        self._steady = False
        self._last: deque[str] = deque(maxlen=_KEPT_LINES)
        self._said: set[str] = set()
        self._seen: dict[LogAlert, deque[float]] = {}

    def poll(self) -> None:
        """Start the child if it is due; record its exit if it ended."""
        if self._process is None:
            if time.monotonic() >= self._due:
                self._start()
        elif (code := self._process.poll()) is not None:
            self._handle_exit(code)

    def end(self) -> None:
        """End the child and all its descendants, by SIGTERM first."""
        _end_marked(self._mark)
        if self._process is not None:
            self._process.wait()
            self._forget()

    def _start(self) -> None:
        # without the second, files of the working folder could be imported
        plain = {"PYTHONUNBUFFERED": "1", "PYTHONSAFEPATH": "1"}
        self._process = subprocess.Popen(
            bound(self._child.command),
            env={**os.environ, **plain, **self._child.environment, MARK_VARIABLE: self._mark},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
        )
        self._pid, self._began = self._process.pid, time.monotonic()
        self._said.clear()
        self._seen = {alert: deque(maxlen=alert.times) for alert in self._child.alerts}
        self._last.clear()
        assert self._process.stdout is not None
        self._reader = threading.Thread(target=self._read, args=(self._process.stdout,), daemon=True)
        self._reader.start()
        self._say(f"{self._child.name} started (process {self._process.pid})")

    def _handle_exit(self, code: int) -> None:
        lived = time.monotonic() - self._began
        _end_marked(self._mark, politely=False)  # its descendants are useless without it
        self._forget()
        self._steady = self._steady or lived > STEADY_S
        if (
            code == EXIT_NEEDS_PERSON and self._last and not self._steady
        ):  # a child that ran well before may recover
            raise SilosError(self._last[-1])
        self._pause = next_pause(self._pause, lived, MIN_PAUSE_S, MAX_PAUSE_S)
        self._due = time.monotonic() + self._pause
        why = self._last[-1] if code > 0 and self._last else ""
        self._say(
            f"{self._child.name} {ending(code)} after {lived:.0f} s; restarts in {self._pause:.0f} s"
            + (f"; its last line: {why[:200]}" if why else "")
        )

    def _forget(self) -> None:
        """Read the output of an ended process to its end, and release it."""
        if self._reader is not None:
            self._reader.join(timeout=TERMINATE_WAIT_S)
        if self._process is not None and self._process.stdout is not None and not self._reader_alive():
            self._process.stdout.close()
        self._process = self._reader = None

    def _reader_alive(self) -> bool:
        return self._reader is not None and self._reader.is_alive()

    def _read(self, stream: IO[str]) -> None:
        with contextlib.suppress(OSError, ValueError):
            for line in stream:
                self._handle_line(line.rstrip("\n"))

    def _handle_line(self, line: str) -> None:
        self._log.write(line)
        if line.strip():
            self._last.append(line.strip())
        for alert, seen in self._seen.items():
            if found := re.search(alert.pattern.replace("{pid}", str(self._pid)), line):
                seen.append(time.monotonic())
                if len(seen) == alert.times and seen[-1] - seen[0] <= alert.within:
                    self._warn(found.expand(alert.sentence))

    def _warn(self, sentence: str) -> None:
        if sentence not in self._said:
            self._said.add(sentence)
            self._say(sentence)


class _Log:
    """A log file that never exceeds twice its bound; on a full disk lines are lost, but nothing fails."""

    def __init__(self, path: Path) -> None:
        self._path, self._lock = path, threading.Lock()

    def write(self, line: str) -> None:
        with self._lock, contextlib.suppress(OSError):
            if self._path.exists() and self._path.stat().st_size > _MAX_LOG_BYTES:
                self._path.replace(self._path.with_name(self._path.name + ".1"))
            with open(self._path, "a", encoding="utf8", opener=_owner_only) as file:
                file.write(line + "\n")


def next_pause(last: float, lived: float, shortest: float, longest: float) -> float:
    """Seconds before the next start: twice the last pause, or `shortest` after more than `STEADY_S`."""
    return shortest if lived > STEADY_S else min(longest, max(shortest, 2 * last))


def ending(code: int) -> str:
    """How a process ended, in words, by its return code.

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
    """Processes whose mark starts with `mark`, except this one."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if process.pid != os.getpid() and process.environ().get(MARK_VARIABLE, "").startswith(mark):
                found.append(process)
    return found


def _end_marked(mark: str, *, politely: bool = True) -> list[int]:
    """End the processes with this mark, by SIGTERM first if `politely`; return their ids."""
    ended: list[int] = []
    while processes := [
        one for one in _marked(mark) if one.pid not in ended
    ]:  # one may have just started another
        if politely:
            _signal(processes, signal.SIGTERM)
            _await_end(processes, TERMINATE_WAIT_S)
        _signal([one for one in processes if not _has_ended(one)], signal.SIGKILL)
        _await_end(processes, TERMINATE_WAIT_S)
        ended += [process.pid for process in processes]
    return ended


def _signal(processes: Sequence[psutil.Process], number: signal.Signals) -> None:
    for process in processes:
        with contextlib.suppress(psutil.Error):
            process.send_signal(number)


def _await_end(processes: Sequence[psutil.Process], seconds: float) -> None:
    ends = time.monotonic() + seconds
    while not all(map(_has_ended, processes)) and time.monotonic() < ends:
        time.sleep(0.02)


def _has_ended(process: psutil.Process) -> bool:
    """Whether a process has ended; zombies count, since in a container nothing may reap an orphan."""
    try:
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    except psutil.Error:
        return True


@contextlib.contextmanager
def _exclusive(home: Path) -> Iterator[None]:
    """Lock `home` against other supervisors."""
    try:
        handle = lock.acquire(home / _LOCK)
    except BlockingIOError:
        raise SilosError(
            f"{home.parent} is already running on this machine; stop it first, or leave it running"
        ) from None
    try:
        yield
    finally:
        os.close(handle)
