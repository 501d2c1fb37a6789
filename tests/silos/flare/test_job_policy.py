"""Only our own job is taken, and each refusal is a line in the log."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("nvflare")

from nvflare.fuel.sec.authz import AuthorizationService, AuthzContext, Person

from shepherd.core import Adapter, ServerState
from shepherd.run import checkpoint
from shepherd.run.checkpoint import Checkpoint
from shepherd.silos.flare import job, job_policy
from shepherd.silos.flare.job_policy import OurJob
from shepherd.silos.protocol.jobspec import JobSpec

CONFIGS = {"server": "config_fed_server.json", "site": "config_fed_client.json"}


@pytest.fixture
def ours(tmp_path: Path) -> Path:
    """A job as the coordinator writes it."""
    state = Checkpoint(state=ServerState(round=3, adapter=Adapter()), notes={})
    order = JobSpec(
        run="ab" * 8, base="0" * 64, fingerprint="f", version="1", sites=("site-1",), settings={"seed": 0}
    )
    return job.write(
        tmp_path / "jobs", order, checkpoint.save(tmp_path / "state", state, keep=1), len(order.sites)
    )


def put(name: str, text: str = "x") -> Callable[[Path], None]:
    def spoil(app: Path) -> None:
        (app / name).parent.mkdir(parents=True, exist_ok=True)
        (app / name).write_text(text)

    return spoil


def changed(kind: str, change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    def spoil(app: Path) -> None:
        table = json.loads((app / "config" / CONFIGS[kind]).read_text())
        change(table)
        (app / "config" / CONFIGS[kind]).write_text(json.dumps(table))

    return spoil


def another_executor(table: dict[str, Any]) -> None:
    table["executors"][0]["executor"] = {"path": "subprocess.Popen", "args": {"args": ["touch", "x"]}}


def a_component(table: dict[str, Any]) -> None:
    table["components"].append({"id": "log", "name": "nvflare.x.Streamer"})


def patient(seconds: object) -> Callable[[Path], None]:
    return changed("site", lambda table: table.update(submit_task_result_timeout=seconds))


def an_argument(table: dict[str, Any]) -> None:
    table["workflows"][0]["args"] = {"home": "/etc"}


@pytest.mark.parametrize("kind", ["server", "site"])
def test_our_own_job_is_taken_with_what_submitting_puts_into_it(ours: Path, kind: str) -> None:
    for folder in (ours / kind, *(path for path in (ours / kind).rglob("*") if path.is_dir())):
        (folder / ".__nvfl_sig.json").write_text("{}")
        (folder / ".__nvfl_submitter.crt").write_text("")
    assert OurJob(kind).validate(str(ours / kind)) == ("", {})


@pytest.mark.parametrize("seconds", [30, 31, 3600, 24 * 3600])
def test_a_job_for_a_larger_adapter_is_ours_too(ours: Path, seconds: int) -> None:
    patient(seconds)(ours / "site")
    assert OurJob("site").validate(str(ours / "site")) == ("", {})


@pytest.mark.parametrize(
    ("kind", "spoil", "said"),
    [
        ("server", put("custom/evil.py"), "brings custom/evil.py"),
        ("site", put("custom/evil.py"), "brings custom/evil.py"),
        ("site", put("config/shepherd/order.json"), "brings config/shepherd/order.json"),
        ("server", put("config/shepherd/round-00003/evil.py"), "brings config/shepherd/round-00003/evil.py"),
        ("server", put("config/shepherd/../../up.json"), "brings up.json"),
        ("server", put("config/config_fed_server.conf"), "brings config/config_fed_server.conf"),
        ("server", put("config/" + "é\n" * 80), r"brings config/\xe9\n"),
        ("site", changed("site", another_executor), "names subprocess.Popen"),
        ("site", changed("site", a_component), "names nvflare.x.Streamer"),
        ("server", changed("server", an_argument), "has settings of its own in config_fed_server.json"),
        ("server", put("config/config_fed_server.json", "{"), "has no config_fed_server.json that can be"),
        ("site", put("config/config_fed_client.json", "[]"), "has settings of its own"),
        ("site", patient(0), "has settings of its own"),
        ("site", patient(-1), "has settings of its own"),
        ("site", patient(29), "has settings of its own"),
        ("site", patient(24 * 3600 + 1), "has settings of its own"),
        ("site", patient(10**9), "has settings of its own"),
        ("site", patient(60.5), "has settings of its own"),
        ("site", patient(True), "has settings of its own"),
        ("site", patient({"path": "evil.Evil"}), "names evil.Evil"),
    ],
)
def test_any_other_job_is_refused_by_what_is_wrong_with_it(
    ours: Path, caplog: pytest.LogCaptureFixture, kind: str, spoil: Callable[[Path], None], said: str
) -> None:
    spoil(ours / kind)
    why, _ = OurJob(kind).validate(str(ours / kind))
    assert f"since it {said}" in why
    assert len(why) < 340
    assert [record.getMessage() for record in caplog.records] == [f"refused a job: {why}"]


def test_a_link_is_no_file_of_ours(ours: Path) -> None:
    (ours / "site" / "more").symlink_to("/etc")
    assert "brings more" in OurJob("site").validate(str(ours / "site"))[0]


@pytest.fixture
def restored() -> Iterator[None]:
    before = AuthorizationService.authorize
    yield
    AuthorizationService.authorize = staticmethod(before)


def test_a_denied_right_is_a_line_in_the_log(
    restored: None, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.INFO)
    answers = {"lead": (True, ""), "member": (False, "no")}
    monkeypatch.setattr(
        AuthorizationService, "authorize", staticmethod(lambda asked: answers[asked.user.role])
    )
    job_policy.log_denials()
    for role, answer in answers.items():
        asked = AuthzContext("submit_job", Person(f"{role}@x.org", "x", role), Person("", "", ""))
        assert AuthorizationService.authorize(asked) == answer
    (line,) = (record.getMessage() for record in caplog.records)
    assert line == "refused submit_job to member@x.org (member): its role does not allow that"
