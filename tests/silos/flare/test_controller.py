"""FLARE's side of the server: its tasks are small fakes, the loop that waits for answers is ours."""

from __future__ import annotations

import json
import os
import stat
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("nvflare")

from nvflare.apis.signal import Signal
from nvflare.app_common.abstract.fl_model import FLModel
from nvflare.fuel.f3.cellnet import cell
from tests.silos.server.posts import Site, honest

from shepherd.core import Adapter, ServerState
from shepherd.errors import FederationError
from shepherd.run import checkpoint
from shepherd.run.checkpoint import Checkpoint
from shepherd.silos.flare import controller, known_sites, message, tls
from shepherd.silos.flare.controller import Rounds, Stopped
from shepherd.silos.flare.job import ORDER, PAYLOAD
from shepherd.silos.protocol import wire
from shepherd.silos.protocol.jobspec import JobSpec
from shepherd.silos.server.site_federation import Until

Send = Callable[[bytes, Sequence[str], Callable[[FLModel], None]], None]


@pytest.fixture(autouse=True)
def own_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """A job changes FLARE in its process, which is ours here."""
    monkeypatch.setattr(cell, "_is_server_job_cell", cell._is_server_job_cell)


def answer(site: str, data: bytes | None = None) -> FLModel:
    model = message.wrapped(data or site.encode())
    model.meta["client_name"] = site
    return model


class Standing:
    """A task that stands as long as its controller says so."""

    def __init__(self, flare: Flare) -> None:
        self.flare = flare

    @property
    def is_standing(self) -> bool:
        return self.flare.stands()


class Flare(Rounds):
    """A controller whose FLARE is a function that is given each task."""

    def __init__(self, send: Send, sites: Sequence[str] = ("a", "b")) -> None:
        super().__init__()
        self.send, self.sites = send, sites
        self.standing, self.cancelled = 0, 0
        self.gone: dict[str, float] = {}
        self.timeouts: list[int] = []
        self.abort_signal = Signal()
        self.fl_ctx: Any = SimpleNamespace(get_job_id=lambda: "job-7")
        self.commands: dict[str, tuple[Any, Any]] = {}
        clients = [SimpleNamespace(name=name) for name in sites]
        self.engine: Any = SimpleNamespace(get_clients=lambda: clients, register_app_command=self.registered)

    def registered(self, topic: str, function: Any, served: Any) -> None:
        self.commands[topic] = (function, served)

    def told(self, **asked: Any) -> dict[str, Any]:
        function, served = self.commands[controller.TOPIC]
        return dict(function(controller.TOPIC, asked, None, served))

    def send_model(self, **given: Any) -> None:
        assert given["task_name"] == "ask"
        self.standing = 1
        self._scheduled.append(Standing(self))
        self.timeouts.append(given["timeout"])
        self.send(message.unwrapped(given["data"]), given["targets"], given["callback"])

    def stands(self) -> bool:
        return bool(self.standing)

    def get_client_disconnect_time(self, client_name: str) -> float | None:
        return self.gone.get(client_name)

    def cancel_task(self, task: Any, **given: Any) -> None:
        self.cancelled += 1
        self.standing = 0

    def log_warning(self, *given: Any, **more: Any) -> None:
        pass


def later(seconds: float, do: Callable[[], object]) -> None:
    threading.Timer(seconds, do).start()


def test_answers_are_passed_on_as_they_come_and_no_longer_waited_for() -> None:
    def send(data: bytes, sites: Sequence[str], put: Callable[[FLModel], None]) -> None:
        assert (data, sites) == (b"question", ["a", "b"])
        put(answer("b"))
        later(0.1, lambda: put(answer("a")))

    flare = Flare(send)
    began = time.monotonic()
    assert list(flare.ask(b"question", ["a", "b"], 30.0)) == [("b", b"b"), ("a", b"a")]
    assert time.monotonic() - began < 5.0
    assert flare.cancelled == 1


def test_each_site_gets_its_own_message() -> None:
    def send(data: bytes, sites: Sequence[str], put: Callable[[FLModel], None]) -> None:
        (site,) = sites
        put(answer(site, b"about " + data))

    flare = Flare(send)
    asked = {"a": b"one", "b": b"two"}
    assert dict(flare.ask_each(asked, 30.0)) == {"a": b"about one", "b": b"about two"}
    assert flare.cancelled == 1
    assert list(Flare(lambda *given: None).ask_each(asked, 0.1)) == []


def test_the_next_question_waits_until_flare_has_let_go_of_the_last_one() -> None:
    """Of a wave of which all have answered nobody asks for the end; two questions would be held at once."""
    flare = Flare(lambda data, sites, put: put(answer("a")))
    ended: list[float] = []

    def cancel(task: Any, **given: Any) -> None:
        later(0.3, lambda: (ended.append(time.monotonic()), setattr(flare, "standing", 0)))

    flare.cancel_task = cancel  # type: ignore[method-assign]
    asking = flare.ask(b"q", ["a"], 5.0)
    assert next(asking) == ("a", b"a")
    del asking
    assert ended
    assert ended[0] <= time.monotonic()


def test_of_two_answers_of_a_site_the_first_is_passed_on_and_a_strangers_none() -> None:
    def send(data: bytes, sites: Sequence[str], put: Callable[[FLModel], None]) -> None:
        for site, text in (("x", b"x"), ("a", b"first"), ("a", b"second"), ("b", b"b")):
            put(answer(site, text))

    assert list(Flare(send).ask(b"q", ["a", "b"], 5.0)) == [("a", b"first"), ("b", b"b")]


def test_who_is_silent_is_waited_for_until_the_deadline() -> None:
    flare = Flare(lambda data, sites, put: put(answer("a")))
    began = time.monotonic()
    assert list(flare.ask(b"q", ["a", "b"], 0.3)) == [("a", b"a")]
    assert 0.3 <= time.monotonic() - began < 3.0
    assert flare.cancelled == 1
    assert flare.timeouts == [2]  # FLARE's own is in whole seconds, and later than ours


def test_a_task_that_stands_no_more_is_not_waited_for() -> None:
    """FLARE has taken an error for the answer; it is not passed on."""
    flare = Flare(lambda data, sites, put: put(answer("a")))
    later(0.1, lambda: setattr(flare, "standing", 0))
    began = time.monotonic()
    assert list(flare.ask(b"q", ["a", "b"], 30.0)) == [("a", b"a")]
    assert time.monotonic() - began < 5.0


def test_an_answer_that_comes_as_its_task_ends_is_not_lost() -> None:
    class Ending(Flare):
        put: Callable[[FLModel], None]

        def stands(self) -> bool:
            if self.standing:  # between two looks at the inbox, the last answer comes in and the task is done
                self.put(answer("a"))
                self.standing = 0
                return True
            return False

    flare = Ending(lambda data, sites, put: setattr(flare, "put", put))
    assert list(flare.ask(b"q", ["a", "b"], 30.0)) == [("a", b"a")]


def test_a_site_that_goes_is_not_waited_for() -> None:
    flare = Flare(lambda data, sites, put: put(answer("a")))
    later(0.1, lambda: flare.gone.update(b=1.0))
    began = time.monotonic()
    assert list(flare.ask(b"q", ["a", "b"], 30.0)) == [("a", b"a")]
    assert time.monotonic() - began < 5.0
    assert flare.present() == ["a"]


def test_an_answer_of_a_site_that_went_is_taken_while_others_are_waited_for() -> None:
    def send(data: bytes, sites: Sequence[str], put: Callable[[FLModel], None]) -> None:
        later(0.3, lambda: put(answer("b")))
        later(0.6, lambda: put(answer("a")))

    flare = Flare(send)
    flare.gone.update(b=1.0)
    assert list(flare.ask(b"q", ["a", "b"], 30.0)) == [("b", b"b"), ("a", b"a")]


def test_a_site_that_the_coordinator_knows_to_be_away_is_not_waited_for() -> None:
    flare = Flare(lambda data, sites, put: put(answer("a")))
    served = SimpleNamespace(snapshot=lambda asked: {"rows": asked["rows"]})
    flare.registered(controller.TOPIC, flare._on_command, served)
    later(0.1, lambda: flare.told(rows=3, away=["b"]))

    assert list(flare.ask(b"q", ["a", "b"], 30.0)) == [("a", b"a")]
    assert flare.told(rows=3, away=["b"]) == {"rows": 3, "present": ["a"]}
    assert flare.told(rows=3, away=[]) == {"rows": 3, "present": ["a", "b"]}  # it is back


def test_who_is_away_holds_until_the_coordinator_says_else_or_is_silent(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    flare = Flare(lambda *given: None)
    served = SimpleNamespace(snapshot=lambda asked: {})
    flare.registered(controller.TOPIC, flare._on_command, served)
    flare.told(rows=3, away=["b"])
    assert flare.told(state={"round": 1}) == {"present": ["a"]}  # of a checkpoint that is fetched
    on_reply = flare._last_contact
    assert flare.told(rows=3) == {"present": ["a"]}  # of who only looks on
    assert flare._last_contact == on_reply
    monkeypatch.setattr(controller, "AWAY_S", 0.0)
    assert flare.present() == ["a", "b"]


def test_a_command_that_is_none_is_answered_like_an_empty_one() -> None:
    flare = Flare(lambda *given: None)
    served = SimpleNamespace(snapshot=lambda asked: {"asked": asked})
    assert flare._on_command(controller.TOPIC, "nonsense", None, served)["asked"] == {}


def test_a_job_that_is_ended_stops_waiting() -> None:
    flare = Flare(lambda *given: None)
    later(0.1, lambda: flare.abort_signal.trigger("over"))
    began = time.monotonic()
    with pytest.raises(Stopped, match="continue the run with"):
        list(flare.ask(b"q", ["a"], 30.0))
    assert time.monotonic() - began < 5.0


@pytest.mark.parametrize("params", [{"weights": np.zeros(2)}, [1, 2], "text"])
def test_what_is_no_answer_of_ours_is_passed_on_as_nothing(params: Any) -> None:
    def send(data: bytes, sites: Sequence[str], put: Callable[[FLModel], None]) -> None:
        put(FLModel(params=params, meta={"client_name": "a"}))

    assert list(Flare(send).ask(b"q", ["a"], 5.0)) == [("a", b"")]


def test_an_answer_after_its_time_is_dropped_with_a_word_in_the_log(monkeypatch: pytest.MonkeyPatch) -> None:
    flare = Flare(lambda *given: None)
    warned: list[str] = []
    monkeypatch.setattr(flare, "log_warning", lambda fl_ctx, line: warned.append(line))
    flare.process_result_of_unknown_task(SimpleNamespace(name="a"), "ask", "id", None, None)
    assert warned == ["dropped a late answer of a"]


# a whole job ---------------------------------------------------------------------------------------------

A, B = "q.lora_A.weight", "q.lora_B.weight"
START = ServerState(round=0, adapter=Adapter({A: np.ones((2, 3)), B: np.zeros((3, 2))}))
SETTINGS = {
    "model": {"base": "tiny"},
    "data": {"source": "world"},
    "federation": {"rounds": 2},
    "silos": {"deadline_s": 5.0},
    "tuning": {"max_steps": 1},
}


@pytest.fixture
def order() -> JobSpec:
    version = wire.version()
    return JobSpec(
        run="0" * 16, base="b" * 64, fingerprint="f", version=version, sites=("a", "b"), settings=SETTINGS
    )


def job(
    tmp_path: Path, order: JobSpec, text: str | None = None, submitter: str = "ada", role: str = "lead"
) -> Flare:
    """The job of an order on a server, with sites that answer at once."""
    brought = tmp_path / "config" / PAYLOAD
    notes: dict[str, Any] = {"positions": {}, "row": None, "base": "f"}
    checkpoint.save(brought, Checkpoint(state=START, notes=notes), keep=1)
    (brought / ORDER).write_text(text or order.text())
    sites: dict[str, Site] = {"a": honest("a", 1.0), "b": honest("b", 2.0, weight=3.0)}

    def send(data: bytes, targets: Sequence[str], put: Callable[[FLModel], None]) -> None:
        for site in reversed(targets):
            put(answer(site, sites[site](wire.decode_request(data))))

    flare = Flare(send)
    flare.engine.get_workspace = lambda: SimpleNamespace(
        get_app_config_dir=lambda job: str(tmp_path / "config"),
        get_job_meta_path=lambda job: str(tmp_path / "meta.json"),
        get_root_dir=lambda: str(tmp_path / "kit"),
    )
    known_sites.add(tmp_path / "kit", ["a", "b", "c"])
    meta = {"submitter_name": submitter, "submitter_role": role, "submitter_org": "o"}
    (tmp_path / "meta.json").write_text(json.dumps(meta))
    return flare


def test_a_job_goes_through_its_rounds_and_lets_its_news_be_taken(
    tmp_path: Path, order: JobSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(controller, "LINGER_S", 0.1)
    flare = job(tmp_path, order)
    flare.run()

    told = flare.told(rows=0, said=0)
    assert [row["round"] for row in told["rows"]] == [0, 1, 2]
    assert told["outcome"] == {"finished": True}
    assert not cell._is_server_job_cell(SimpleNamespace(fqcn="server.job-7"))  # see `outlive`
    kept = checkpoint.load(tmp_path / "kit/shepherd/runs" / order.run / "checkpoints/round-00002")
    # by hand: each round adds the weighted mean (1 * 1 + 3 * 2) / 4, but neither is more than half
    np.testing.assert_allclose(kept.state.adapter[A], 1 + 2 * 1.5)


def test_a_finished_job_ends_when_it_is_told_to(tmp_path: Path, order: JobSpec) -> None:
    flare = job(tmp_path, order)
    later(0.3, lambda: flare.abort_signal.trigger("taken"))
    began = time.monotonic()
    flare.run()
    assert time.monotonic() - began < 10.0


def test_a_job_that_begins_without_a_site_first_waits_for_another_job(
    tmp_path: Path, order: JobSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(controller, "LINGER_S", 0.1)
    flare = job(tmp_path, replace(order, sites=("a", "b", "c")))
    later(0.5, lambda: flare.abort_signal.trigger("another begins"))
    began = time.monotonic()
    flare.run()

    assert 0.5 <= time.monotonic() - began < 5.0
    assert flare.timeouts == []  # nobody was asked anything


@pytest.mark.parametrize("key", ["away", "unawaited"])
def test_it_waits_for_nobody_of_whom_the_coordinator_knows(
    tmp_path: Path, order: JobSpec, monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    monkeypatch.setattr(controller, "LINGER_S", 0.1)
    flare = job(tmp_path, replace(order, sites=("a", "b", "c")))
    later(0.3, lambda: flare.told(rows=0, said=0, **{key: ["c"]}))
    began = time.monotonic()
    flare.run()

    assert 0.3 <= time.monotonic() - began < 5.0
    assert flare.told(rows=0, said=0)["rows"][-1]["failures"] == {
        "c": "it is not connected; start `shepherd silos site` there"
    }


def test_it_does_not_wait_for_ever(tmp_path: Path, order: JobSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(controller, "LINGER_S", 0.1)
    monkeypatch.setattr(controller, "SUCCESSOR_S", 0.4)
    flare = job(tmp_path, replace(order, sites=("a", "b", "c")))
    began = time.monotonic()
    flare.run()

    assert 0.4 <= time.monotonic() - began < 5.0
    assert flare.told(rows=0, said=0)["outcome"] == {"finished": True}


def test_a_site_that_came_while_the_job_was_submitted_takes_part(
    tmp_path: Path, order: JobSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The coordinator waited for it in vain; FLARE found it after all."""
    monkeypatch.setattr(controller, "LINGER_S", 0.1)
    flare = job(tmp_path, order)
    register = flare.engine.register_app_command

    def told_at_once(*given: Any) -> None:
        register(*given)
        flare.told(rows=0, said=0, unawaited=["b"])

    flare.engine.register_app_command = told_at_once
    flare.run()
    rows = flare.told(rows=0, said=0)["rows"]
    assert [row.get("failures", {}) for row in rows] == [{}, {}, {}]


@pytest.mark.parametrize("what", ["version", "order", "settings"])
def test_a_job_that_cannot_begin_says_why_to_whoever_asks(
    tmp_path: Path, order: JobSpec, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    """Silent, it would be begun again and again."""
    monkeypatch.setattr(controller, "LINGER_S", 0.1)
    change: dict[str, Any] = {
        "version": {"version": "0.0.0"},
        "order": {"run": "../up"},
        "settings": {"settings": {**SETTINGS, "later": {"key": 1}}},
    }[what]
    flare = job(tmp_path, order, replace(order, **change).text())
    flare.run()

    told = flare.told(rows=5, said=0)
    assert told["opened"] is False
    words = {"version": "install the same", "order": "submit the job again", "settings": "later"}
    assert words[what] in told["outcome"]["error"]
    assert not (tmp_path / "kit" / "shepherd" / "runs").exists()


def outcome(flare: Flare, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.setattr(controller, "LINGER_S", 0.1)
    flare.run()
    return flare.told(rows=0, said=0)


def test_a_run_is_gone_on_with_by_who_submitted_it_and_no_other_lead(
    tmp_path: Path, order: JobSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or a lead could take another's checkpoints by the run's name, and put its own in their place."""
    first = outcome(job(tmp_path / "1", order, submitter="ada"), monkeypatch)
    assert first["outcome"] == {"finished": True}
    (tmp_path / "2").mkdir()
    (tmp_path / "1" / "kit").rename(tmp_path / "2" / "kit")

    stranger = job(tmp_path / "2", order, submitter="bo")
    told = outcome(stranger, monkeypatch)
    assert "the run belongs to ada, and bo is lead" in told["outcome"]["error"]
    assert (told["rows"], told["opened"]) == ([], False)
    wanted = {"round": 2, "file": checkpoint.FILES[0], "offset": 0}
    assert not stranger.told(rows=0, said=0, state=wanted).get("state")


@pytest.mark.parametrize(("submitter", "role"), [("ada", "lead"), ("root", "project_admin")])
def test_who_submitted_a_run_or_a_project_admin_goes_on_with_it(
    tmp_path: Path, order: JobSpec, monkeypatch: pytest.MonkeyPatch, submitter: str, role: str
) -> None:
    home = tmp_path / "kit" / "shepherd" / "runs" / order.run
    controller._require_same_submitter(home, "ada", "lead")
    told = outcome(job(tmp_path, order, submitter=submitter, role=role), monkeypatch)
    assert told["outcome"] == {"finished": True}
    kept = home / controller.SUBMITTER
    assert kept.read_text() == "ada"
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600
    assert not list(home.glob(f"{controller.SUBMITTER}-*"))


def test_of_two_that_begin_a_run_at_once_one_has_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    link = os.link

    def late(mine: Path, kept: Path) -> None:
        kept.write_text("bo")  # came between
        link(mine, kept)

    monkeypatch.setattr(os, "link", late)
    with pytest.raises(FederationError, match="the run belongs to bo, and ada is lead"):
        controller._require_same_submitter(tmp_path / "run", "ada", "lead")


def test_an_order_with_a_site_that_is_not_in_the_federation_begins_nothing(
    tmp_path: Path, order: JobSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    flare = job(tmp_path, replace(order, sites=("a", "ghost")))
    told = outcome(flare, monkeypatch)
    assert "'ghost' has never connected to this server" in told["outcome"]["error"]
    assert flare.timeouts == []
    assert not (tmp_path / "kit" / "shepherd" / "runs").exists()


def test_an_order_may_name_what_the_servers_own_kit_lists(
    tmp_path: Path, order: JobSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = replace(order, settings={**SETTINGS, "algorithm": {"name": "shepherd.algorithms.fedavg"}})
    told = outcome(job(tmp_path / "1", asked), monkeypatch)
    assert "does not allow the algorithm 'shepherd.algorithms.fedavg'" in told["outcome"]["error"]
    (tmp_path / "2" / "kit" / "local").mkdir(parents=True)
    (tmp_path / "2" / "kit" / "local" / "plugins.json").write_text(
        '{"algorithms": ["shepherd.algorithms.fedavg"]}'
    )
    assert outcome(job(tmp_path / "2", asked), monkeypatch)["outcome"] == {"finished": True}


def test_a_job_of_an_administrator_who_was_removed_meanwhile_does_not_begin(
    tmp_path: Path, order: JobSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    flare = job(tmp_path, order, submitter="ada", role="project_admin")
    (tmp_path / "kit" / tls.REMOVED).write_text('{"disabled_clients": ["ada"]}')
    told = outcome(flare, monkeypatch)
    assert "ada was removed from the federation" in told["outcome"]["error"]
    assert flare.timeouts == []


# answers that come late ------------------------------------------------------------------------------------


def test_a_request_ends_when_its_caller_brings_the_end_forward_and_what_comes_then_is_late() -> None:
    def send(data: bytes, sites: Sequence[str], put: Callable[[FLModel], None]) -> None:
        put(answer("a"))
        later(0.6, lambda: put(answer("b", b"at last")))

    flare = Flare(send)
    until, began = Until(time.monotonic() + 30.0), time.monotonic()
    came = []
    for site, _ in flare.ask_until(b"q", ["a", "b"], until, keep=True):
        came.append(site)
        until.at = time.monotonic() + 0.1
    assert came == ["a"]
    assert time.monotonic() - began < 0.6
    assert flare.cancelled == 0  # or FLARE would not have the site send it
    assert list(flare.late()) == []
    time.sleep(0.8)
    assert list(flare.late()) == [("b", b"at last")]
    assert list(flare.late()) == []
    flare.standing = 0
    assert list(flare.late()) == []
    assert flare._kept == []


def test_what_is_not_kept_is_ended_and_another_request_does_not_end_what_is_kept() -> None:
    flare = Flare(lambda data, sites, put: put(answer("a")))
    list(flare.ask_until(b"q", ["a", "b"], Until(time.monotonic() + 0.1), keep=False))
    assert (flare.cancelled, flare._kept) == (1, [])

    class Apart(Flare):
        """Each task stands by itself."""

        def send_model(self, **given: Any) -> None:
            super().send_model(**given)
            self._scheduled[-1] = SimpleNamespace(is_standing=True)  # type: ignore[call-overload]

        def cancel_task(self, task: Any, **given: Any) -> None:
            task.is_standing = False

    apart = Apart(lambda data, sites, put: put(answer("a")))
    list(apart.ask_until(b"q", ["a", "b"], Until(time.monotonic() + 0.1), keep=True))
    assert list(apart.ask(b"score", ["a"], 5.0)) == [("a", b"a")]
    ((_, tasks),) = apart._kept
    assert [task.is_standing for task in tasks] == [True]
