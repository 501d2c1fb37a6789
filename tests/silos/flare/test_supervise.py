"""With real processes, whose pauses are cut short."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from shepherd.errors import SilosError
from shepherd.silos.flare import supervise as module
from shepherd.silos.flare.supervise import Child, LogAlert, supervise


@pytest.fixture(autouse=True)
def _hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MIN_PAUSE_S", 0.05)
    monkeypatch.setattr(module, "MAX_PAUSE_S", 0.2)
    monkeypatch.setattr(module, "TERMINATE_WAIT_S", 0.5)
    monkeypatch.setattr(module, "_TICK_S", 0.02)


def python(name: str, text: str, **more: object) -> Child:
    return Child(name, [sys.executable, "-S", "-c", textwrap.dedent(text)], **more)  # type: ignore[arg-type]


SLEEPER = python("sleeper", "import time; time.sleep(60)")


@contextmanager
def running(home: Path, *children: Child) -> Iterator[list[str]]:
    said: list[str] = []
    stop = threading.Event()
    thread = threading.Thread(target=supervise, args=(home, children, said.append, stop))
    thread.start()
    try:
        yield said
    finally:
        stop.set()
        thread.join(20)
        assert not thread.is_alive()


def until(true: Callable[[], object], seconds: float = 10.0) -> None:
    ends = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < ends, "it took too long"
        time.sleep(0.02)


def started(said: list[str], name: str) -> list[int]:
    return [int(m[1]) for line in list(said) if (m := re.match(rf"{name} started \(process (\d+)\)", line))]


def alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_what_dies_is_started_again_and_what_lives_is_ended_at_the_end(tmp_path: Path) -> None:
    other = python("other", "import time; time.sleep(60)")
    with running(tmp_path, SLEEPER, other) as said:
        until(lambda: len(started(said, "sleeper")) == 1 and len(started(said, "other")) == 1)
        os.kill(started(said, "sleeper")[0], signal.SIGKILL)
        until(lambda: len(started(said, "sleeper")) == 2)
    pids = [*started(said, "sleeper"), *started(said, "other")]
    assert len(pids) == 3
    assert not any(alive(pid) for pid in pids)
    (restart,) = [line for line in said if "killed" in line]
    assert restart.startswith("sleeper was killed by SIGKILL after 0 s; restarts in 0 s")
    assert said[-1] == "stopped"
    log = (tmp_path / "supervisor.log").read_text().splitlines()
    assert [line[20:] for line in log] == said


def test_pauses_grow_to_the_longest_and_a_code_and_the_last_line_are_told(tmp_path: Path) -> None:
    failing = python("failing", "print('no disk'); raise SystemExit(3)")
    with running(tmp_path, failing) as said:
        until(lambda: len(started(said, "failing")) == 5)
    deaths = [line for line in said if "ended" in line]
    assert deaths[0] == "failing ended with code 3 after 0 s; restarts in 0 s; its last line: no disk"
    assert (tmp_path / "failing.log").read_text().splitlines()[:4] == ["no disk"] * 4


def test_the_pauses() -> None:
    pauses, pause = [], 0.0
    for lived in (0, 0, 0, 0, 0, 0, 0, 61, 0):
        pause = module.next_pause(pause, lived, shortest=1, longest=30)
        pauses.append(pause)
    assert pauses == [1, 2, 4, 8, 16, 30, 30, 1, 2]


def test_a_child_that_will_not_end_is_ended(tmp_path: Path) -> None:
    stubborn = python(
        "stubborn",
        """
        import signal, time
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        print("ready"); time.sleep(60)
        """,
    )
    with running(tmp_path, stubborn) as said:
        until(lambda: "ready" in _text(tmp_path / "stubborn.log"))
    assert not alive(started(said, "stubborn")[0])


PARENT_OF_A_SESSION = """
    import subprocess, sys, time
    sleep = [sys.executable, "-S", "-c", "import time; time.sleep(60)"]
    child = subprocess.Popen(sleep, start_new_session=True)
    print("child", child.pid); time.sleep(60)
"""


def test_what_a_child_has_started_ends_with_it_even_in_a_session_of_its_own(tmp_path: Path) -> None:
    with running(tmp_path, python("parent", PARENT_OF_A_SESSION)) as said:
        until(lambda: _children(tmp_path))
        (grandchild,) = _children(tmp_path)
        os.kill(started(said, "parent")[0], signal.SIGKILL)
        until(lambda: not alive(grandchild))
        until(lambda: len(_children(tmp_path)) == 2)
    assert not any(alive(pid) for pid in _children(tmp_path))


SUPERVISOR = """
    import sys, threading
    from pathlib import Path
    from shepherd.silos.flare.supervise import Child, supervise
    child = Child("parent", [sys.executable, "-S", "-c", sys.argv[2]])
    supervise(Path(sys.argv[1]), [child], lambda line: None, threading.Event())
"""


@pytest.mark.skipif(
    sys.platform != "linux", reason="elsewhere a child outlives its supervisor until the next"
)
def test_a_killed_supervisor_leaves_nothing_for_long(tmp_path: Path) -> None:
    program = [sys.executable, "-c", textwrap.dedent(SUPERVISOR)]
    with subprocess.Popen([*program, str(tmp_path), textwrap.dedent(PARENT_OF_A_SESSION)]) as supervisor:
        until(lambda: _children(tmp_path))
        (grandchild,) = _children(tmp_path)
        parent = psutil.Process(grandchild).ppid()
        assert alive(parent)
        supervisor.kill()
    until(lambda: not alive(parent))  # the kernel ends it
    assert alive(grandchild)
    with running(tmp_path, SLEEPER) as said:  # the next supervisor ends the rest
        until(lambda: started(said, "sleeper"))
        assert not alive(grandchild)
    assert said[0] == f"ended process {grandchild}, left by a supervisor that was killed"


def test_one_supervisor_a_kit(tmp_path: Path) -> None:
    home = tmp_path / "kit" / "shepherd"
    with running(home, SLEEPER) as said:
        until(lambda: started(said, "sleeper"))
        with pytest.raises(SilosError, match=f"{tmp_path / 'kit'} is already running on this machine"):
            supervise(home, [SLEEPER], said.append, threading.Event())
        assert len(started(said, "sleeper")) == 1
    stop = threading.Event()
    stop.set()
    supervise(home, [SLEEPER], said.append, stop)  # and free again


def test_a_line_that_only_a_person_can_act_on_is_said_once(tmp_path: Path) -> None:
    alert = LogAlert(r"twin of (\S+)", r"two machines run with the kit of \1", times=2)
    noisy = python(
        "noisy", "import time; [print('twin of north') for _ in range(5)]; time.sleep(60)", alerts=[alert]
    )
    once = python("once", "import time; print('twin of south'); time.sleep(60)", alerts=[alert])
    with running(tmp_path, noisy, once) as said:
        until(lambda: "north" in _text(tmp_path / "noisy.log") and "south" in _text(tmp_path / "once.log"))
        until(lambda: len(said) >= 3)
    assert [line for line in said if "two machines" in line] == ["two machines run with the kit of north"]


def test_what_has_to_be_so_first_stops_the_rest(tmp_path: Path) -> None:
    def taken() -> None:
        raise SilosError("the port is taken")

    said: list[str] = []
    with pytest.raises(SilosError, match="the port is taken"):
        supervise(tmp_path, [SLEEPER], said.append, threading.Event(), before=taken)
    assert said == []


HELPLESS = python("helpless", f"print('the port is taken'); raise SystemExit({module.EXIT_NEEDS_PERSON})")


def test_a_child_that_nobody_but_a_person_can_help_ends_the_rest_with_its_sentence(tmp_path: Path) -> None:
    said: list[str] = []
    with pytest.raises(SilosError, match=r"^the port is taken$"):
        supervise(tmp_path, [SLEEPER, HELPLESS], said.append, threading.Event())
    assert len(started(said, "helpless")) == 1
    assert not any(map(alive, started(said, "sleeper")))
    assert not [line for line in said if "restarts" in line]


def test_a_child_that_was_well_for_long_is_started_again_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is in its way may pass, and nobody may be there."""
    monkeypatch.setattr(module, "STEADY_S", 0.0)
    with running(tmp_path, HELPLESS) as said:
        until(lambda: len(started(said, "helpless")) == 3)
    assert "its last line: the port is taken" in said[1]


def test_a_log_has_a_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MAX_LOG_BYTES", 1000)
    log = module._Log(tmp_path / "x.log")
    for number in range(500):
        log.write(f"line {number:04d}")
    sizes = [(tmp_path / name).stat().st_size for name in ("x.log", "x.log.1")]
    assert all(0 < size < 1100 for size in sizes)
    assert (tmp_path / "x.log").read_text().endswith("line 0499\n")
    assert (tmp_path / "x.log").stat().st_mode & 0o777 == 0o600


def _text(file: Path) -> str:
    return file.read_text() if file.exists() else ""


def _children(home: Path) -> list[int]:
    return [int(found) for found in re.findall(r"child (\d+)\n", _text(home / "parent.log"))]
