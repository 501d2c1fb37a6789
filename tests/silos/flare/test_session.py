"""What FLARE says to an administrator, in our words; its session is a fake that raises what it is told."""

from __future__ import annotations

import logging
import uuid
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("nvflare")

from nvflare.apis.fl_exception import FLCommunicationError
from nvflare.fuel.flare_api import api_spec

from shepherd.errors import OutOfReach, SilosError
from shepherd.silos.flare import session as module
from shepherd.silos.flare.session import JobGone, JobSilent, Quiet, Session, session

RUN = "0a1b2c3d4e5f6071"
ONE, TWO = str(uuid.uuid4()), str(uuid.uuid4())
KIT: Any = SimpleNamespace(name="ada", host="hub.example", port=8002, folder=Path("/kit"))
OPERATIONS: dict[str, Any] = {
    "connected": lambda server: server.connected(),
    "jobs": lambda server: server.jobs(),
    "run": lambda server: server.run("j"),
    "submit": lambda server: server.submit(Path("job")),
    "status": lambda server: server.status("j"),
    "ask_job": lambda server: server.ask_job("j", {}),
    "disable": lambda server: server.disable("a"),
}


class Flare:
    """FLARE's session: every method gives one answer, or raises it."""

    def __init__(self, **answers: Any) -> None:
        self.answers, self.calls = answers, list[tuple[Any, ...]]()
        self.api = SimpleNamespace(close=lambda: self.calls.append(("api.close",)))

    def __getattr__(self, name: str) -> Any:
        def method(*given: Any) -> Any:
            self.calls.append((name, *given))
            answer = self.answers.get(name, self.answers.get("anything"))
            answer = answer(*given) if callable(answer) else answer
            if isinstance(answer, Exception):
                raise answer
            return answer

        return method


def server(**answers: Any) -> Session:
    flare: Any = Flare(**answers)
    return Session(KIT, flare)


def info(*names: str) -> list[Any]:
    return [SimpleNamespace(name=name) for name in names]


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize(
    ("raised", "ours", "words"),
    [
        (api_spec.AuthorizationError("no"), SilosError, "does not let ada do this"),
        (api_spec.AuthenticationError("no"), SilosError, "refuses ada"),
        (api_spec.InvalidJobDefinition("no"), SilosError, "refuses the job"),
        (api_spec.JobNotFound("no"), JobGone, "is not running at hub.example"),
        (api_spec.JobNotRunning("no"), JobGone, "is not running at hub.example"),
        (api_spec.NoReply("no"), JobSilent, "does not answer"),
        (api_spec.NoConnection("no"), OutOfReach, "hub.example:8002 did not answer"),
        (api_spec.SessionClosed("no"), OutOfReach, "did not answer"),
        (api_spec.SessionExpired("no"), OutOfReach, "did not answer"),
        (FLCommunicationError("no"), OutOfReach, "did not answer"),
        (RuntimeError("no"), OutOfReach, "did not answer"),
        (TimeoutError("no"), OutOfReach, "did not answer"),
        (api_spec.InternalError("no"), OutOfReach, "did not answer|does not answer"),
    ],
)
def test_what_flare_raises_is_one_sentence_of_ours(
    operation: str, raised: Exception, ours: type[SilosError], words: str
) -> None:
    with pytest.raises(ours, match=words) as caught:
        OPERATIONS[operation](server(anything=raised))
    assert ";" in str(caught.value)  # the remedy


def test_connected_sites_are_named_in_order() -> None:
    assert server(get_connected_client_list=info("b", "a")).connected() == ["a", "b"]


def test_who_works_on_what() -> None:
    rows = [
        {"client_name": "a", "job_id": ONE, "status": "started"},
        {"client_name": "a", "job_id": TWO, "status": "started"},
        {"client_name": "b", "status": "no_jobs"},
        {"client_name": "c", "status": "no_reply"},
        {"client_name": "d", "status": "error"},
    ]
    seen = server(get_connected_client_list=info("a", "b", "c"), get_client_job_status=rows).working()
    assert seen == {"a": frozenset({ONE, TWO}), "b": frozenset(), "c": Quiet.SILENT, "d": Quiet.UNWILLING}


@pytest.mark.parametrize(
    "answer", [None, [], api_spec.NoClientsAvailable("none"), api_spec.InvalidTarget("a is gone")]
)
def test_nobody_works_where_the_last_site_has_just_left(answer: Any) -> None:
    assert server(get_connected_client_list=info("a"), get_client_job_status=answer).working() == {}


def test_where_nobody_is_connected_nobody_is_asked() -> None:
    one = server(get_connected_client_list=[], get_client_job_status=AssertionError())
    assert one.working() == {}


def test_a_silent_site_is_not_taken_for_a_silent_server() -> None:
    """FLARE's server keeps us waiting for it, and says nothing of the others."""

    def status(sites: list[str]) -> list[dict[str, str]]:
        if not sites or sites == ["b"]:
            raise api_spec.NoConnection("ERROR_SERVER_CONNECTION")
        return [{"client_name": sites[0], "job_id": ONE, "status": "started"}]

    one = server(get_connected_client_list=info("a", "b", "c"), get_client_job_status=status)
    assert one.working() == {"a": frozenset({ONE}), "b": Quiet.SILENT, "c": frozenset({ONE})}
    flare: Any = one._flare
    assert flare.calls[-1] == ("unset_timeout",)


def test_a_silent_server_is_one() -> None:
    connected = iter([info("a"), api_spec.NoConnection("down")])
    one = server(
        get_connected_client_list=lambda: next(connected),
        get_client_job_status=api_spec.NoConnection("down"),
    )
    with pytest.raises(OutOfReach):
        one.working()


def test_running_jobs_and_their_runs() -> None:
    listed = [SimpleNamespace(job_id="7", app_name="server")]
    one = server(get_system_info=SimpleNamespace(job_info=listed), get_job_meta={"name": f"shepherd-{RUN}"})
    assert one.jobs() == {"7"}
    assert one.run("7") == RUN


@pytest.mark.parametrize(
    "meta", [{}, {"name": 7}, {"name": "shepherd-\x1b[2J"}, {"name": f"shepherd-{RUN}\n"}]
)
def test_a_job_that_is_none_of_ours_goes_by_its_id(meta: dict[str, Any]) -> None:
    assert server(get_job_meta=meta).run("7") == "7"


@pytest.mark.parametrize("job", [7, ["1"], "\x1b[2J", ""])
def test_what_a_site_calls_its_jobs_is_taken_only_if_it_is_a_jobs_id(job: Any) -> None:
    rows = [{"client_name": "a", "job_id": job, "status": "started"}]
    found = server(get_connected_client_list=info("a"), get_client_job_status=rows).working()
    assert found == {"a": Quiet.UNWILLING}


def test_a_job_is_asked_by_our_topic() -> None:
    one = server(do_app_command={"rows": []})
    assert one.ask_job("j", {"rows": 3}) == {"rows": []}
    flare: Any = one._flare
    assert flare.calls == [("do_app_command", "j", "shepherd", {"rows": 3})]


@pytest.mark.parametrize("answer", [{}, None, api_spec.InternalError("not registered yet")])
def test_a_job_that_answers_nothing_is_silent(answer: Any) -> None:
    with pytest.raises(JobSilent):
        server(do_app_command=answer).ask_job("j", {})


def test_a_job_that_is_gone_is_ended_already() -> None:
    server(abort_job=api_spec.JobNotRunning("over")).abort("j")
    server(abort_job=api_spec.JobNotFound("over")).abort("j")
    with pytest.raises(OutOfReach):
        server(abort_job=api_spec.NoConnection("down")).abort("j")


# logging in ----------------------------------------------------------------------------------------------


@pytest.fixture
def login(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Have a login give this, or raise it."""
    handlers = list(logging.getLogger().handlers)

    def given(answer: Any) -> Any:
        def new(name: str, folder: str, **more: Any) -> Any:
            assert (name, folder) == ("ada", "/kit")
            print("FLARE says that it connects")
            if isinstance(answer, Exception):
                raise answer
            return answer

        monkeypatch.setattr(module, "new_secure_session", new)
        return answer

    monkeypatch.setattr(module, "kits", SimpleNamespace(read=lambda folder, kind: KIT))
    monkeypatch.setattr(module.probe, "reach", lambda kit, timeout: None)
    yield given
    logging.getLogger().handlers[:] = handlers


def test_it_is_logged_out_whatever_happens(login: Any, capsys: pytest.CaptureFixture[str]) -> None:
    flare = login(Flare())
    with pytest.raises(KeyboardInterrupt), session("/kit"):
        raise KeyboardInterrupt
    assert flare.calls == [("close",)]
    assert capsys.readouterr().out == ""


def test_a_server_that_is_gone_by_then_leaves_no_thread_behind(login: Any) -> None:
    flare = login(Flare(close=RuntimeError("gone")))
    with session("/kit"):
        pass
    assert flare.calls == [("close",), ("api.close",)]


@pytest.mark.parametrize(
    ("raised", "ours"),
    [
        (api_spec.NoConnection("down"), OutOfReach),
        (FLCommunicationError("down"), OutOfReach),
        (api_spec.AuthenticationError("no"), SilosError),
    ],
)
def test_a_login_that_fails_is_one_sentence(login: Any, raised: Exception, ours: type[SilosError]) -> None:
    login(raised)
    with pytest.raises(ours, match=r"ada|hub\.example"), session("/kit"):
        pass


def test_a_server_out_of_reach_is_told_before_flare_is_asked(
    login: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def nobody(kit: Any, timeout: float) -> None:
        raise OutOfReach("nothing listens; start it")

    login(AssertionError())
    monkeypatch.setattr(module.probe, "reach", nobody)
    with pytest.raises(OutOfReach, match="nothing listens"), session("/kit"):
        pass
