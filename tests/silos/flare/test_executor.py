"""A site's door between FLARE and its trainer: bytes pass, and what goes wrong is a fixed sentence."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("nvflare")

from nvflare.apis.fl_constant import ReturnCode
from nvflare.apis.shareable import Shareable
from nvflare.apis.signal import Signal
from nvflare.app_common.abstract.fl_model import FLModel
from nvflare.app_common.utils.fl_model_utils import FLModelUtils

from shepherd.core import Failure
from shepherd.errors import LocalError, WireError
from shepherd.silos.flare import executor, message
from shepherd.silos.flare.executor import Door
from shepherd.silos.protocol import ipc, wire
from shepherd.silos.protocol.wire import Ready, Request

SECRET = "Grandmother's recipe"


def request(deadline: float = 5.0) -> bytes:
    return wire.encode_request(
        Request(
            kind="join",
            run="0" * 16,
            id="1" * 64,
            round=0,
            deadline=deadline,
            sent=time.time(),
            version="0.1.0",
            cohort=1,
            base="b" * 64,
            settings={},
            broadcast=None,
        )
    )


@contextmanager
def trainer(home: Path, handle: Callable[[bytes], bytes], after: float = 0.0) -> Iterator[None]:
    ready, stopped = threading.Event(), threading.Event()

    def serve() -> None:
        time.sleep(after)
        ipc.serve(ipc.choose_address(home), handle, ready.set, stopped)

    thread = threading.Thread(target=serve)
    thread.start()
    if not after:
        assert ready.wait(5)
    try:
        yield
    finally:
        stopped.set()
        thread.join()


class Site:
    """The door with FLARE's side of it as small as it gets."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.home = root / "shepherd"
        self.logged: list[str] = []
        self.signal = Signal()
        self.door = Door()
        monkeypatch.setattr(self.door, "log_error", lambda context, text: self.logged.append(text))
        workspace = SimpleNamespace(get_root_dir=lambda: str(root))
        engine = SimpleNamespace(get_workspace=lambda: workspace)
        self.context: Any = SimpleNamespace(get_identity_name=lambda: "a", get_engine=lambda: engine)

    def answer(self, shareable: Shareable) -> Shareable:
        return self.door.execute("ask", shareable, self.context, self.signal)

    def asked(self, data: bytes) -> Any:
        answered = self.answer(FLModelUtils.to_shareable(message.wrapped(data)))
        self.raw = message.unwrapped(FLModelUtils.from_shareable(answered))
        return wire.decode_reply(self.raw)


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    monkeypatch.setattr(executor, "RESTART_S", 0.3)
    monkeypatch.setattr(executor, "POLL_S", 0.02)
    return Site(tmp_path, monkeypatch)


def joined(data: bytes) -> bytes:
    wire.decode_request(data)
    return wire.encode_reply(Ready(client="a", examples=7, version="0.1.0"))


def test_bytes_go_to_the_trainer_and_its_answer_back(site: Site) -> None:
    with trainer(site.home, joined):
        assert site.asked(request()) == Ready(client="a", examples=7, version=wire.version())
    assert site.logged == []


def test_a_trainer_that_is_being_started_again_is_waited_for(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(executor, "RESTART_S", 10.0)
    with trainer(site.home, joined, after=0.3):
        assert isinstance(site.asked(request()), Ready)


def test_but_no_longer_than_the_answer_is_wanted(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(executor, "RESTART_S", 100.0)
    began = time.monotonic()
    assert isinstance(site.asked(request(deadline=0.2)), Failure)
    assert 0.2 <= time.monotonic() - began < 3.0


def test_a_trainer_that_does_not_run_is_said_without_a_path(site: Site) -> None:
    reply = site.asked(request())
    assert reply == Failure(
        client="a", reason="its trainer is not running; its owner starts it with `shepherd silos site`"
    )
    assert str(site.home).encode() not in site.raw
    assert str(site.home) in site.logged[0]  # the owner's own log names it


def test_a_trainer_that_dies_at_work_is_not_waited_for(site: Site) -> None:
    path = ipc.choose_address(site.home)
    path.unlink(missing_ok=True)
    ready = threading.Event()

    def die() -> None:
        import socket

        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(path))
            listener.listen()
            ready.set()
            listener.accept()[0].close()

    thread = threading.Thread(target=die)
    thread.start()
    assert ready.wait(5)
    reply = site.asked(request())
    thread.join()
    assert reply.reason == "its trainer died while working and is being restarted; its log says why"
    assert str(site.home).encode() not in site.raw


@pytest.mark.parametrize(
    "model", [message.wrapped(b""), message.wrapped(b"nonsense"), FLModel(params={"w": np.zeros(2)})]
)
def test_what_is_no_request_never_reaches_the_trainer(site: Site, model: FLModel) -> None:
    def never(data: bytes) -> bytes:
        raise AssertionError(data)

    with trainer(site.home, never):
        answered = site.answer(FLModelUtils.to_shareable(model))
    reply = wire.decode_reply(message.unwrapped(FLModelUtils.from_shareable(answered)))
    assert reply == Failure(
        client="a", reason="it cannot read the request; install the server's version there"
    )


@pytest.mark.parametrize("shareable", [Shareable(), Shareable({"x": 1})])
def test_a_message_of_another_kind_is_answered_too(site: Site, shareable: Shareable) -> None:
    reply = wire.decode_reply(message.unwrapped(FLModelUtils.from_shareable(site.answer(shareable))))
    assert isinstance(reply, Failure)


@pytest.mark.parametrize("error", [ValueError(SECRET), OSError(13, SECRET), KeyError(SECRET)])
def test_what_nobody_thought_of_is_a_failure_and_its_text_stays_unsaid(
    site: Site, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail(*given: object, **more: object) -> bytes:
        raise error

    monkeypatch.setattr(ipc, "ask", fail)
    ipc.choose_address(site.home)
    assert site.asked(request()) == Failure(
        client="a", reason="an unexpected error happened there; its log says which"
    )
    assert site.logged == [type(error).__name__]


def test_no_error_of_ours_tells_the_server_more_than_a_fixed_sentence() -> None:
    for error in (LocalError(SECRET), WireError(SECRET), ValueError(SECRET)):
        assert SECRET not in executor._reason(error)


def test_a_job_that_is_ended_is_not_answered(site: Site) -> None:
    def ending(data: bytes) -> bytes:
        site.signal.trigger("over")
        return joined(data)

    with trainer(site.home, ending):
        answered = site.answer(FLModelUtils.to_shareable(message.wrapped(request())))
    assert answered.get_return_code() == ReturnCode.TASK_ABORTED


def test_a_job_that_is_ended_waits_for_no_trainer(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(executor, "RESTART_S", 100.0)
    site.signal.trigger("over")
    began = time.monotonic()
    answered = site.answer(FLModelUtils.to_shareable(message.wrapped(request())))
    assert answered.get_return_code() == ReturnCode.TASK_ABORTED
    assert time.monotonic() - began < 3.0
