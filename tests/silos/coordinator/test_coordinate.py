"""The coordinator's side of a run: its folder, whatever happens at the server. The server is a script."""

from __future__ import annotations

import base64
import json
import logging
import shutil
import tomllib
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from dataclasses import replace
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tomli_w

pytest.importorskip("nvflare")

from tests.silos.server.posts import Letters, Site, failing, honest
from tests.silos.servers import AWAY, GONE, Hosted, hosted

from shepherd import compare, world
from shepherd.compare.arms import CompareSpec
from shepherd.compare.comparison import compare as compared
from shepherd.core import Adapter, Poisson, Spending, Update
from shepherd.errors import (
    AdapterError,
    CheckpointError,
    FederationError,
    FolderError,
    SettingsError,
    ShepherdError,
)
from shepherd.io.atomic import write_atomic
from shepherd.io.progress import Progress
from shepherd.machine import memory, plan
from shepherd.machine.plan import PLAN
from shepherd.model import files, lora
from shepherd.model.base import Base
from shepherd.model.coverage import coverage
from shepherd.model.digest import digest
from shepherd.overrides import overridden, parse
from shepherd.privacy import accountant
from shepherd.run import answerer, checkpoint, claims, folder, ledger, resuming
from shepherd.run.loading import load_base
from shepherd.run.log import read_rows
from shepherd.settings import MachineTable, RunSettings
from shepherd.silos.coordinator import admin as membership
from shepherd.silos.coordinator import coordinate, job_follower
from shepherd.silos.coordinator import state_file as record
from shepherd.silos.coordinator.coordinate import SilosRun
from shepherd.silos.coordinator.job_follower import StatusUpdate
from shepherd.silos.protocol import wire
from shepherd.silos.protocol.wire import Request
from shepherd.silos.server import server_run
from shepherd.silos.site.request_checks import RequestRefused
from shepherd.silos.site.site_store import AnsweredRound, Store
from shepherd.silos.site.trainer import Trainer, _to_answer
from shepherd.training.local import completed
from shepherd.ui import report

assert compare  # the package, by its name

RUN: dict[str, Any] = {
    "model": {"base": "tiny"},
    "adapter": {"rank": 2, "targets": ["q_proj"]},
    "data": {"source": "nowhere.jsonl", "template": "alpaca-short"},
    "federation": {"rounds": 4},
    "silos": {"deadline_s": 5.0},
    "tuning": {"max_steps": 1, "learning_rate": 0.01, "round_schedule": "linear"},
}
ROUNDS = 4


@pytest.fixture(scope="module")
def base() -> Iterator[Base]:
    before = memory.threads()
    yield load_base(parse(RUN))
    memory.use_threads(before)


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, base: Base) -> Hosted:
    post = Letters({"a": honest("a", 0.01), "b": honest("b", 0.02, weight=3.0)})
    made = Hosted(home=tmp_path / "server", post=post)
    (tmp_path / "kit").mkdir()
    hosted(monkeypatch, made)
    monkeypatch.setattr(coordinate, "load_base", lambda settings, consent: base)
    admin = SimpleNamespace(name="ada", role="lead")
    monkeypatch.setattr(coordinate, "kits", SimpleNamespace(read=lambda kit, kind: admin))
    return made


def settings(tmp_path: Path, *overrides: str) -> RunSettings:
    return overridden(parse({**RUN, "output": str(tmp_path / "run")}), overrides)


def opened(tmp_path: Path, *overrides: str, words: list[str] | None = None) -> SilosRun:
    words = [] if words is None else words
    return coordinate.open_run(settings(tmp_path, *overrides), tmp_path / "kit", words.append)


def through(run: SilosRun) -> list[int]:
    with closing(run):
        found = [row["round"] for _, row in run.rounds()]
        run.finish()
    return found


def logged(tmp_path: Path) -> list[int]:
    return [row["round"] for row in read_rows(tmp_path / "run")]


def final(tmp_path: Path) -> bytes:
    """The final adapter as it lies in the run folder."""
    return (tmp_path / "run" / "adapter" / "adapter_model.safetensors").read_bytes()


def keeping(store: Store, name: str, site: Site) -> Site:
    """The site, with what a real one keeps of its answers and refuses by it."""
    trainer: Any = SimpleNamespace(
        store=store,
        name=name,
        _require_allowed=lambda *_: None,
        _trained=lambda request, update: _to_answer(update),
    )

    def asked(request: Request) -> bytes | None:
        if request.kind != "train":
            return site(request)
        try:
            kept = Trainer._kept_answer(trainer, request)
        except RequestRefused as error:
            return failing(name, str(error))(request)
        if kept is not None:
            return kept.message
        reply = site(request)
        update = wire.decode_reply(reply) if reply else None
        if isinstance(update, Update):
            answered = AnsweredRound(
                round=request.round,
                id=request.id,
                update=update,
                start=4 * request.round,
                position=4 * (request.round + 1),
                different=4,
                examples=40,
                moved=1.5,
                memory=Adapter(),
                adapter=None,
            )
            store.save(request.run, answered)
        return reply

    return asked


@pytest.fixture
def whole(tmp_path: Path, server: Hosted) -> bytes:
    """The final adapter of the same run, undisturbed."""
    home, server.home = server.home, tmp_path / "undisturbed" / "server"
    through(opened(tmp_path / "undisturbed"))
    server.home = home
    server.served.clear()
    server.on_reply.clear()
    server.aborted.clear()
    server.asked.clear()
    return final(tmp_path / "undisturbed")


def test_a_base_by_its_hub_id_is_known_by_its_files(
    tmp_path: Path, server: Hosted, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sites know it by the digest of what was downloaded."""
    from transformers.utils import hub

    home = tmp_path / "hub" / "models--them--their-base"
    shutil.copytree(world.base_path(), home / "snapshots" / "c0ffee")
    (home / "refs").mkdir()
    (home / "refs" / "main").write_text("c0ffee")
    monkeypatch.setattr(hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    with closing(opened(tmp_path, 'model.base="them/their-base"')) as run:
        assert run.follower.order.base == digest(world.base_path())


def test_a_run_fills_its_folder(tmp_path: Path, server: Hosted, base: Base) -> None:
    words: list[str] = []
    assert through(opened(tmp_path, words=words)) == [1, 2, 3, 4]

    rows = read_rows(tmp_path / "run")
    assert [row["round"] for row in rows] == [0, 1, 2, 3, 4]
    assert [row["learning_rate"] for row in rows[1:]] == pytest.approx([0.01, 0.0075, 0.005, 0.0025])
    last = checkpoint.load(tmp_path / "run" / "checkpoints" / "round-00004")
    assert files.read(tmp_path / "run" / "adapter", base) == last.state.adapter
    assert words[0] == "sites: a, b"
    assert coverage(base.model, base.targets).sentence in words
    assert server.aborted == ["job-0"]
    assert folder.read_settings(tmp_path / "run") == completed(settings(tmp_path))  # as it was given
    kept = plan.read(tmp_path / "run")
    assert (kept.workers, kept.stack_size, kept.dtype) == (1, 1, str(base.dtype).removeprefix("torch."))


def test_what_goes_to_the_server_is_the_run_file_as_planned(
    tmp_path: Path, server: Hosted, base: Base
) -> None:
    through(opened(tmp_path, "tuning.clip_norm=0", "machine.threads=1", "machine.micro_batch_tokens=99"))
    order = server.served["job-0"].order
    kept = folder.planned(tmp_path / "run")
    asked = {"output": "run", "machine": MachineTable()}  # nothing of this machine
    assert parse(order.settings) == kept.model_copy(update=asked)
    assert "machine" not in order.settings
    assert order.settings["model"]["dtype"] == str(base.dtype).removeprefix("torch.")
    assert order.settings["tuning"]["clip_norm"] == 0


def test_no_request_says_how_a_machine_is_used(tmp_path: Path, server: Hosted) -> None:
    through(opened(tmp_path, "machine.threads=1", "machine.micro_batch_tokens=99"))
    assert server.post.requests
    for request in server.post.requests:
        assert not request.settings.keys() & {"machine", "silos"}
        assert request.settings["model"]["dtype"] != "auto"


def test_a_folder_of_an_earlier_version_is_followed_on(tmp_path: Path, server: Hosted, whole: bytes) -> None:
    with closing(opened(tmp_path)) as run:
        assert len(list(islice(run.rounds(), 2))) == 2
    path = tmp_path / "run"
    kept = plan.read(path)
    tables = tomllib.loads(folder.dump(folder.planned(path)))
    tables["federation"] |= {"sites": ["a", "b"], "deadline": tables.pop("silos")["deadline_s"], "wave": 4}
    tables["tuning"] |= {"cohort_size": 1, "workers": 1, "micro_batch_tokens": "auto"}
    del tables["machine"]
    (path / folder.RUN_FILE).write_text(tomli_w.dumps(tables))
    (path / PLAN).unlink()
    silos = json.loads((path / folder.SILOS).read_text())
    silos["order"]["settings"] = {**tables, "output": "run"}
    (path / folder.SILOS).write_text(json.dumps(silos))

    assert through(coordinate.resume(path, lambda line: None)) == [3, 4]
    assert final(tmp_path) == whole
    assert plan.read(path) == kept


def test_a_run_gets_more_rounds_with_the_bits_of_a_longer_run(
    tmp_path: Path, server: Hosted, whole: bytes
) -> None:
    run = opened(tmp_path, "federation.rounds=2")
    assert through(run) == [1, 2]
    path = tmp_path / "run"
    assert through(coordinate.resume(path, lambda line: None, overrides=["federation.rounds=4"])) == [3, 4]
    assert final(tmp_path) == whole
    assert folder.read_settings(path).federation.rounds == 4
    assert record.read_state(path)[1].federation.rounds == 4


def test_a_job_of_the_shorter_run_makes_room(tmp_path: Path, server: Hosted, whole: bytes) -> None:
    with closing(opened(tmp_path, "federation.rounds=3")) as run:
        assert len(list(islice(run.rounds(), 1))) == 1
    path = tmp_path / "run"
    again = coordinate.resume(path, lambda line: None, overrides=["federation.rounds=4"])
    assert through(again)[-1] == 4
    assert final(tmp_path) == whole


EXAMPLES = (
    "federation.rounds=2",
    "privacy={epsilon=2.0, examples={norm=1.0, noise=1.0}}",
    "tuning.batch_size=8",
)


def contents(path: Path) -> dict[str, bytes]:
    return {str(file.relative_to(path)): file.read_bytes() for file in path.rglob("*") if file.is_file()}


@pytest.fixture
def finished(tmp_path: Path, server: Hosted) -> Path:
    """The folder of a run of two rounds, which spend half of the epsilon of each example."""
    server.post = Letters({name: honest(name, 1e-4, examples=200) for name in ("a", "b")})
    assert through(opened(tmp_path, 'federation.weights="equal"', *EXAMPLES)) == [1, 2]
    return tmp_path / "run"


def test_more_rounds_that_the_server_refuses_leave_a_finished_run_as_it_was(
    tmp_path: Path, server: Hosted, finished: Path
) -> None:
    before = contents(finished)
    more = coordinate.resume(finished, lambda line: None, overrides=["federation.rounds=2000"])
    with closing(more), pytest.raises(FederationError, match="epsilon"):
        list(more.rounds())
    assert contents(finished) == before
    assert through(coordinate.resume(finished, lambda line: None, overrides=["federation.rounds=2"])) == []
    assert contents(finished).keys() == before.keys()
    assert through(coordinate.resume(finished, lambda line: None, overrides=["federation.rounds=3"])) == [3]
    assert ledger.read(finished, ledger.OF_EXAMPLES)["finished"] == 3
    assert folder.ended(finished) == folder.read_settings(finished).federation.rounds == 3


def test_rounds_that_the_server_made_meanwhile_are_not_those_that_are_more(
    tmp_path: Path, server: Hosted
) -> None:
    server.post = Letters({name: honest(name, 1e-4, examples=200) for name in ("a", "b")})
    path = tmp_path / "run"
    four = [*(key for key in EXAMPLES if "rounds" not in key), "federation.rounds=4"]
    with closing(opened(tmp_path, 'federation.weights="equal"', *four)) as run:
        next(run.rounds())  # the server goes on without its coordinator
    more = coordinate.resume(path, lambda line: None, overrides=["federation.rounds=2000"])
    with closing(more), pytest.raises(FederationError, match="epsilon"):
        list(more.rounds())
    assert folder.read_settings(path).federation.rounds == 4
    through(coordinate.resume(path, lambda line: None))
    assert folder.ended(path) == 4


def test_more_rounds_that_the_sites_refuse_leave_a_finished_run_as_it_was(
    tmp_path: Path, server: Hosted, finished: Path
) -> None:
    before = contents(finished)
    honest_sites = server.post.sites
    server.post = Letters({name: failing(name, "policy max_rounds = 2 refuses 4 rounds") for name in "ab"})
    more = coordinate.resume(finished, lambda line: None, overrides=["federation.rounds=4"])
    with closing(more), pytest.raises(FederationError, match="max_rounds"):
        list(more.rounds())
    assert contents(finished) == before
    server.post = Letters(honest_sites)
    assert through(coordinate.resume(finished, lambda line: None)) == []


def test_a_server_that_is_away_leaves_a_finished_run_as_it_was(
    tmp_path: Path, server: Hosted, finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = contents(finished)

    def session(kit: Path) -> None:
        raise AWAY

    monkeypatch.setattr(job_follower, "session", session)
    more = coordinate.resume(finished, lambda line: None, overrides=["federation.rounds=4"])
    with closing(more), pytest.raises(ShepherdError, match="the server is down"):
        list(more.rounds())
    assert contents(finished) == before


@pytest.mark.parametrize("then", [[], ["federation.rounds=2"], ["federation.rounds=4"]])
def test_a_kill_before_the_first_of_more_rounds_leaves_a_finished_run(
    tmp_path: Path, server: Hosted, finished: Path, monkeypatch: pytest.MonkeyPatch, then: list[str]
) -> None:
    """With a job at the server that may have begun; whatever the person asks for next."""
    before = contents(finished)
    killed_before_the_first_of_more(finished, monkeypatch)
    after = contents(finished)
    assert after.keys() == before.keys()
    assert {name for name in before if before[name] != after[name]} == {folder.SILOS}
    assert record.read_state(finished)[2] == "job-1"  # a person can stop it, and who follows it goes on
    assert not record.is_finished(finished)
    asked = int(then[0][-1]) if then else 4  # a job may be at the server, which is followed
    assert through(coordinate.resume(finished, lambda line: None, overrides=then)) == [3, 4][: asked - 2]
    assert folder.ended(finished) == folder.read_settings(finished).federation.rounds == asked
    assert record.read_state(finished)[1].federation.rounds == asked
    assert not server.running  # also where the rounds that are more are given up


def test_rounds_that_are_given_up_are_ended_once_the_server_can_be_reached(
    tmp_path: Path, server: Hosted, finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed_before_the_first_of_more(finished, monkeypatch)
    said: list[str] = []
    with monkeypatch.context() as away:
        away.setattr(job_follower, "session", lambda kit: raise_(AWAY))
        assert through(coordinate.resume(finished, said.append, overrides=["federation.rounds=2"])) == []
    assert f"shepherd silos stop {finished}" in said[-1]
    assert (server.running, record.read_state(finished)[2]) == ({"job-1"}, "job-1")
    assert through(coordinate.resume(finished, said.append, overrides=["federation.rounds=2"])) == []
    assert (server.running, record.read_state(finished)[2]) == (set(), None)
    assert record.is_finished(finished)


def test_another_key_does_not_hide_the_rounds_that_were_asked_for(
    tmp_path: Path, server: Hosted, finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed_before_the_first_of_more(finished, monkeypatch)
    again = coordinate.resume(finished, lambda line: None, overrides=["checkpoints.keep=3"])
    assert through(again) == [3, 4]
    assert folder.read_settings(finished).checkpoints.keep == 3


def killed_before_the_first_of_more(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    more = coordinate.resume(path, lambda line: None, overrides=["federation.rounds=4"])
    with monkeypatch.context() as kill, closing(more):
        kill.setattr(SilosRun, "_rewind_log", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            list(more.rounds())


def test_fewer_rounds_than_the_server_has_made_are_refused_by_their_number(
    tmp_path: Path, server: Hosted, finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No job stays behind that nobody knows of, and the run goes on with the number that is named."""
    killed_before_the_first_of_more(finished, monkeypatch)
    fewer = coordinate.resume(finished, lambda line: None, overrides=["federation.rounds=3"])
    with closing(fewer), pytest.raises(FederationError, match=r"has made 4 rounds.*federation\.rounds=4"):
        list(fewer.rounds())
    assert not server.running
    assert through(coordinate.resume(finished, lambda line: None, overrides=["federation.rounds=4"])) == [
        3,
        4,
    ]
    assert not server.running


def test_a_job_that_cannot_be_ended_stays_on_record(
    tmp_path: Path, server: Hosted, finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed_before_the_first_of_more(finished, monkeypatch)
    fewer = coordinate.resume(finished, lambda line: None, overrides=["federation.rounds=3"])
    abort = server.abort
    with monkeypatch.context() as away, closing(fewer):
        away.setattr(server, "abort", lambda job: abort(job) if job == "job-1" else raise_(AWAY))
        with pytest.raises(FederationError, match="has made 4 rounds"):
            list(fewer.rounds())
    assert record.read_state(finished)[2] == "job-2"
    assert server.running == {"job-2"}
    assert through(coordinate.resume(finished, lambda line: None, overrides=["federation.rounds=4"])) == [
        3,
        4,
    ]
    assert not server.running


def raise_(error: Exception) -> None:
    raise error


def test_a_kill_after_the_first_of_more_rounds_is_of_a_run_that_has_them(
    tmp_path: Path, server: Hosted, finished: Path
) -> None:
    more = coordinate.resume(finished, lambda line: None, overrides=["federation.rounds=4"])
    with closing(more):
        assert next(more.rounds())[1]["round"] == 3
    assert (folder.ended(finished), folder.read_settings(finished).federation.rounds) == (None, 4)
    assert through(coordinate.resume(finished, lambda line: None)) == [4]


def test_an_edited_run_file_is_refused_by_its_key(tmp_path: Path, server: Hosted) -> None:
    with closing(opened(tmp_path)) as run:
        next(iter(run.rounds()))
    path = tmp_path / "run"
    text = (path / folder.RUN_FILE).read_text()
    (path / folder.RUN_FILE).write_text(text.replace("seed = 0", "seed = 9", 1))
    with pytest.raises(FolderError, match="seed changed since the run began"):
        coordinate.resume(path)
    (path / folder.RUN_FILE).write_text(text)
    with pytest.raises(SettingsError, match=r"silos\.grace_s=.* cannot be changed"):
        coordinate.resume(path, overrides=["silos.grace_s=1.0"])


PAIRS = "federation.weights=equal privacy.examples={norm=1.0,noise=1.0} tuning.objective.name=dpo"


@pytest.mark.parametrize(
    ("override", "why"),
    [
        ("algorithm.name=fednova", "'fednova' is right only for local steps of plain SGD"),
        ("algorithm.name=scaffold", "'scaffold' counts each client the same"),
        ("evaluation.contribution=true", r"evaluation\.contribution is for a run in one process"),
        (PAIRS, "protects single examples, and the objective draws 2 together"),
    ],
)
def test_what_is_not_sound_over_sites_is_refused_before_anything_is_sent(
    tmp_path: Path, server: Hosted, override: str, why: str
) -> None:
    with pytest.raises(SettingsError, match=why):
        opened(tmp_path, *override.split())
    assert not server.served
    assert not (tmp_path / "run").exists()


def test_who_stops_reading_can_read_on(tmp_path: Path, server: Hosted, whole: bytes) -> None:
    run = opened(tmp_path)
    with closing(run):
        assert len(list(islice(run.rounds(), 2))) == 2
    assert server.aborted == []
    assert logged(tmp_path) == [0, 1, 2]

    assert through(coordinate.resume(tmp_path / "run", lambda line: None)) == [3, 4]
    assert list(server.served) == ["job-0"]
    assert logged(tmp_path) == [0, 1, 2, 3, 4]
    assert final(tmp_path) == whole


def test_its_job_is_on_record_before_it_answers(tmp_path: Path, server: Hosted) -> None:
    run = opened(tmp_path)
    with closing(run):
        assert record.read_state(tmp_path / "run")[2] is None
        next(iter(run.rounds()))
        assert record.read_state(tmp_path / "run")[2] == "job-0"


@pytest.mark.parametrize("dies", [[1], [0, 1, 3], [3, 3, 3]])
def test_jobs_that_die_cost_no_round(tmp_path: Path, server: Hosted, whole: bytes, dies: list[int]) -> None:
    server.dies = list(dies)
    assert through(opened(tmp_path)) == [1, 2, 3, 4]
    assert len(server.served) == len(dies) + 1
    assert final(tmp_path) == whole


def test_a_finished_run_is_finished_without_a_server(
    tmp_path: Path, server: Hosted, whole: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    through(opened(tmp_path))
    (tmp_path / "run" / "adapter" / "adapter_model.safetensors").unlink()
    (tmp_path / "kit").rmdir()
    logins = server.logins

    assert through(coordinate.resume(tmp_path / "run", lambda line: None)) == []
    assert server.logins == logins
    assert final(tmp_path) == whole


def test_the_last_checkpoint_is_fetched_until_it_is_here(
    tmp_path: Path, server: Hosted, whole: bytes
) -> None:
    server.fetching = [GONE, AWAY, AWAY]
    assert through(opened(tmp_path)) == [1, 2, 3, 4]
    assert final(tmp_path) == whole


def test_a_last_checkpoint_that_was_changed_is_not_taken(tmp_path: Path, server: Hosted) -> None:
    server.fetching = [{"of": 4, "data": base64.b64encode(b"evil").decode()}]
    run = opened(tmp_path)
    with closing(run), pytest.raises(CheckpointError, match="cut or changed"):
        list(run.rounds())
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["round-00000"]


def test_a_run_that_lives_on_has_each_of_its_checkpoints_copied(
    tmp_path: Path, server: Hosted, whole: bytes
) -> None:
    server.dies = [2]
    assert through(opened(tmp_path)) == [1, 2, 3, 4]
    # round 2's copy was there as the second job went on from it
    assert (tmp_path / "server" / "given-job-1" / "round-00002").is_dir()
    assert final(tmp_path) == whole


@pytest.mark.parametrize("wrong", [GONE, AWAY, {"of": 9, "data": ""}, {"of": 1, "data": "AA=="}])
def test_a_copy_that_fails_on_the_way_disturbs_nothing(
    tmp_path: Path, server: Hosted, whole: bytes, wrong: Any
) -> None:
    server.dies = [2]
    server.fetching = [wrong]
    assert through(opened(tmp_path)) == [1, 2, 3, 4]
    assert (tmp_path / "server" / "given-job-1" / "round-00000").is_dir()
    assert final(tmp_path) == whole


def test_a_server_that_lost_its_disk_goes_on_from_the_copy_here(
    tmp_path: Path, server: Hosted, whole: bytes
) -> None:
    """The copy is of round 1, the log here knows of round 2: that one is run again."""
    words: list[str] = []
    server.dies = [1, 2, 1]
    run = opened(tmp_path, words=words)

    with closing(run):
        told = run.rounds()
        assert next(told)[1]["round"] == 1
        assert next(told)[1]["round"] == 2
        server.fetching = [GONE]
        (home,) = (path for path in (tmp_path / "server").iterdir() if not path.name.startswith("given"))
        home.rename(tmp_path / "gone")
        again = [row["round"] for _, row in told]
        run.finish()

    brought = (tmp_path / "server" / "given-job-2").iterdir()
    assert [path.name for path in brought] == ["round-00001"]
    assert again == [2, 3, 4]
    assert "the server continues after round 1: it has lost the rounds after it" in words
    assert logged(tmp_path) == [0, 1, 2, 3, 4]
    assert final(tmp_path) == whole


NOISY = (
    'federation.weights="equal"',
    'selection={name="poisson", share=1.0}',
    'transforms=[{name="gaussian", noise=3.0}]',
    "privacy={delta=1e-3, examples={norm=1.0, noise=1.0}}",
)


def test_a_round_that_a_server_lost_and_makes_again_is_counted_in_the_run_folder(
    tmp_path: Path, server: Hosted
) -> None:
    """As above; the job after it hears of that, too."""
    server.post = Letters({name: honest(name, 1e-4, examples=200) for name in ("a", "b")})
    server.dies = [1, 2, 1, 1]
    run = opened(tmp_path, *NOISY)
    with closing(run):
        rounds = run.rounds()
        assert [next(rounds)[1]["round"] for _ in range(2)] == [1, 2]
        server.fetching = [GONE]
        (home,) = (path for path in (tmp_path / "server").iterdir() if not path.name.startswith("given"))
        home.rename(tmp_path / "gone")
        assert [row["round"] for _, row in rounds] == [2, 3, 4]
        run.finish()
    orders = [server.served[job].order for job in ("job-2", "job-3")]
    assert [order.released for order in orders] == [2, 1]  # the log here is cut to what the server has
    assert orders[1].again == {"privacy": 1, "example_privacy": 1}
    rows, both = read_rows(tmp_path / "run"), (ledger.LEDGER, ledger.OF_EXAMPLES)
    client, example = (ledger.read(tmp_path / "run", name) for name in both)
    assert client["again"] == example["again"] == 1
    spent = Spending(noise=3.0, sampling=Poisson(chance=1.0), steps=ROUNDS + 1)
    assert client["epsilon"] == rows[-1]["privacy"]["epsilon"] == accountant.epsilon([spent], 1e-3)
    assert example["epsilon"] == rows[-1]["example_privacy"]["epsilon"]
    card = (tmp_path / "run" / "adapter" / "README.md").read_text()
    assert "Differential privacy of each example." in card
    assert "training examples" not in card


def test_a_loss_is_counted_once_in_the_run_folder_whenever_a_process_dies(
    tmp_path: Path, server: Hosted, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After it has counted, before its log is cut: the log still says then that round 2 was released."""
    server.post = Letters({name: honest(name, 1e-4, examples=200) for name in ("a", "b")})
    server.dies = [2]
    run = opened(tmp_path, *NOISY)
    with closing(run):
        rounds = run.rounds()
        assert [next(rounds)[1]["round"] for _ in range(2)] == [1, 2]
        due = {level: read_rows(run.folder)[-1][level]["epsilon"] for level in ledger.LEVELS}
        for _ in range(3):
            run._count_lost(1)
        kept = claims.spent(run.folder, read_rows(run.folder))
    assert run.follower.order.again == {"privacy": 1, "example_privacy": 1}
    for level, each in kept.items():
        assert (each["again"], each["finished"], each["last_lost"]) == (1, 1, 2)
        assert each["epsilon"] == due[level]
    assert not (run.folder / ledger.SECRET).exists()


def test_a_resumed_run_tells_the_server_what_is_counted_besides(tmp_path: Path, server: Hosted) -> None:
    server.dies = [2]
    run = opened(tmp_path, *NOISY)
    with closing(run):
        next(run.rounds())
        kept = ledger.read(tmp_path / "run")
    (tmp_path / "run" / ledger.LEDGER).write_text(json.dumps({**kept, "again": 3}))
    resumed = coordinate.resume(tmp_path / "run", kit=tmp_path / "kit")
    assert resumed.follower.order.again["privacy"] == 3
    assert not resumed.follower.outdated
    through(resumed)
    assert ledger.read(tmp_path / "run")["again"] == 3


def test_a_begun_run_keeps_the_delta_of_its_clients(
    tmp_path: Path, server: Hosted, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The default was larger once, within a budget that today's is not."""
    server.post = Letters({name: honest(name, 0.1, examples=200) for name in ("a", "b")})
    server.dies = [2]
    with monkeypatch.context() as once:
        once.setattr(accountant, "MAX_DELTA", 1.0)
        with closing(opened(tmp_path, *NOISY[:3], "privacy.epsilon=0.5")) as run:
            next(run.rounds())
    assert through(coordinate.resume(tmp_path / "run", lambda line: None)) == [2, 3, 4]
    spent = [row["privacy"] for row in read_rows(tmp_path / "run")[1:]]
    assert {each["delta"] for each in spent} == {2**-1.1}
    assert ledger.read(tmp_path / "run")["delta"] == 2**-1.1
    assert ledger.read(server.served["job-1"].home)["delta"] == 2**-1.1
    with pytest.raises(SettingsError, match=r"privacy\.epsilon allows 0\.5"):
        opened(tmp_path / "today", *NOISY[:3], "privacy.epsilon=0.5")


def test_the_epsilon_of_examples_never_falls_in_the_run_folder(tmp_path: Path, server: Hosted) -> None:
    """Whatever the server says of a later round: it may know nothing of a site that has left."""
    server.post = Letters({name: honest(name, 1e-4, examples=200) for name in ("a", "b")})

    def kept() -> float:
        return float(ledger.read(tmp_path / "run", ledger.OF_EXAMPLES)["epsilon"])

    with closing(opened(tmp_path, *NOISY)) as run:
        spent = {"privacy": {"epsilon": 0.5, "delta": 1e-3}}
        for number, epsilon in enumerate([40.0, 50.0, 0.09], 1):
            each = {"epsilon": epsilon, "delta": 1e-3}
            logged = run._log_row({"round": number, **spent, "example_privacy": each})
        assert logged["example_privacy"]["epsilon"] == kept() == 50.0
    with closing(coordinate.resume(tmp_path / "run", kit=tmp_path / "kit")) as run:
        assert [row["example_privacy"]["epsilon"] for _, row in run.rounds()] == [50.0]
    assert kept() == read_rows(tmp_path / "run")[-1]["example_privacy"]["epsilon"] == 50.0


def test_copies_leave_the_server_time_for_its_rounds(
    tmp_path: Path, server: Hosted, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A copy that took 3 s is followed by none for 6 s, but the last."""
    clock = hosted(monkeypatch, server)
    real, copied = coordinate._fetch_checkpoint, list[str]()

    def slow(place: Path, *given: Any) -> None:
        copied.append(place.name)
        clock.sleep(3.0)
        real(place, *given)

    monkeypatch.setattr(coordinate, "_fetch_checkpoint", slow)
    run = opened(tmp_path)
    news = StatusUpdate(job="job-0", fetch=lambda round: iter([("state.json", b"")]))
    with closing(run):
        for number, pause in ((1, 5.5), (2, 1.0), (3, 0.0), (4, 0.0)):
            run._copy_checkpoint(
                replace(news, round=number, outcome={"error": "over"} if number == 4 else None)
            )
            clock.sleep(pause)
    assert copied == ["round-00001", "round-00003", "round-00004"]


@pytest.mark.parametrize("lost", [1, 2, 3])
def test_sites_that_have_gone_on_take_the_copy_anew(
    tmp_path: Path, server: Hosted, whole: bytes, lost: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server went on to round 3 with nobody there to copy, and lost its disk; sites keep as real ones do.

    What they still keep they answer again; what they do not, under another name.
    """
    monkeypatch.setattr(server_run, "KEPT_CHECKPOINTS", 9)
    sites = {name: keeping(Store(tmp_path / name), name, site) for name, site in server.post.sites.items()}
    server.post = replace(server.post, sites=sites)
    server.dies = [3]
    run = opened(tmp_path)
    with closing(run):
        assert [row["round"] for _, row in islice(run.rounds(), 3)] == [1, 2, 3]
        (home,) = (path for path in (tmp_path / "server").iterdir() if not path.name.startswith("given"))
        copy = f"round-{3 - lost:05d}"
        if lost < 3:
            shutil.copytree(home / "checkpoints" / copy, run.holder.checkpoints / copy)
        home.rename(tmp_path / "gone")

    again = coordinate.resume(tmp_path / "run", lambda line: None)
    if lost < 3:
        assert through(again) == [ROUNDS]  # the log here had the others
        assert final(tmp_path) == whole
        return
    with closing(again), pytest.raises(FederationError, match=r"round 1: 0 of 2 .*silos new-id"):
        list(again.rounds())
    before = record.read_state(tmp_path / "run")[1].run
    assert "start their data from the beginning" in membership.new_id(tmp_path / "run")
    assert record.read_state(tmp_path / "run")[1].run != before
    assert through(coordinate.resume(tmp_path / "run", lambda line: None)) == [1, 2, 3, 4]
    assert logged(tmp_path) == [0, 1, 2, 3, 4]
    assert final(tmp_path) == whole


def test_a_job_that_cannot_begin_takes_no_round_back(
    tmp_path: Path, server: Hosted, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = opened(tmp_path)
    with closing(run):
        list(islice(run.rounds(), 3))
    server.running.clear()
    (home,) = (path for path in (tmp_path / "server").iterdir() if not path.name.startswith("given"))
    state = home / "checkpoints" / "round-00004" / "state.json"
    kept = state.read_bytes()
    state.write_bytes(b"{}")

    again = coordinate.resume(tmp_path / "run", lambda line: None)
    with closing(again), pytest.raises(FederationError, match=r"state\.json is cut or changed"):
        list(again.rounds())
    assert logged(tmp_path) == [0, 1, 2, 3]

    state.write_bytes(kept)
    assert through(coordinate.resume(tmp_path / "run", lambda line: None)) == [4]


def test_a_round_without_quorum_ends_it_and_can_be_gone_on_with(tmp_path: Path, server: Hosted) -> None:
    sites = dict(server.post.sites)
    policy = "policy max_rank of b refuses rank 2"

    def refusing(request: Any) -> bytes | None:
        return (failing("b", policy) if request.round >= 2 else honest("b"))(request)

    server.post = replace(server.post, sites={**sites, "b": refusing})
    words: list[str] = []
    run = opened(tmp_path, "federation.quorum=1.0", words=words)
    with closing(run), pytest.raises(FederationError, match=f"round 3: 1 of 2 .*b: {policy}"):
        list(run.rounds())
    assert logged(tmp_path) == [0, 1, 2]
    assert checkpoint.latest(run.holder.checkpoints) == run.holder.checkpoints / "round-00002"
    assert server.aborted == ["job-0"]

    server.post = replace(server.post, sites=sites)
    assert through(coordinate.resume(tmp_path / "run", words.append)) == [3, 4]
    assert "continuing after round 2 of 4" in words


def test_a_refusal_is_said_as_the_sites_join_and_stands_in_the_rows(tmp_path: Path, server: Hosted) -> None:
    policy = "policy algorithms of b refuses fedavg"
    server.post = replace(server.post, sites={"a": honest("a"), "b": failing("b", policy)})
    words: list[str] = []
    through(opened(tmp_path, words=words))
    assert words.count(f"b: {policy}") == 1
    rows = read_rows(tmp_path / "run")
    assert [row["failures"] for row in rows[1:]] == ROUNDS * [{"b": policy}]


def test_how_far_a_round_has_come_is_shown(
    tmp_path: Path, server: Hosted, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, logger="shepherd.io.progress")
    through(opened(tmp_path))
    shown = [arg for record in caplog.records for arg in record.args or () if isinstance(arg, Progress)]
    assert shown
    assert {(each.clients, each.rounds) for each in shown} == {(2, ROUNDS)}


def test_a_stopped_run_stays_stopped_until_it_is_resumed(tmp_path: Path, server: Hosted) -> None:
    server.dies = [2]
    run = opened(tmp_path)
    with closing(run):
        told = run.rounds()
        next(told)
        record.mark_stopped(tmp_path / "run")
        with pytest.raises(FederationError, match="was stopped"):
            list(told)
    assert (list(server.served), server.aborted) == (["job-0"], ["job-0"])
    assert logged(tmp_path) == [0, 1, 2]

    assert through(coordinate.resume(tmp_path / "run", lambda line: None)) == [3, 4]
    assert not (tmp_path / "run" / record.STOP_FILE).exists()


def test_one_coordinator_at_a_time(tmp_path: Path, server: Hosted) -> None:
    with closing(opened(tmp_path)), pytest.raises(FolderError, match="this process already holds the run"):
        coordinate.resume(tmp_path / "run")


def test_a_kit_that_has_moved_is_asked_for_by_name(tmp_path: Path, server: Hosted) -> None:
    run = opened(tmp_path)
    with closing(run):
        next(iter(run.rounds()))
    (tmp_path / "kit").rename(tmp_path / "elsewhere")

    with pytest.raises(ShepherdError, match=r"kit, the kit of the run .* does not exist; name the kit with"):
        coordinate.resume(tmp_path / "run")

    through(coordinate.resume(tmp_path / "run", lambda line: None, tmp_path / "elsewhere"))
    assert record.read_state(tmp_path / "run")[0] == tmp_path / "elsewhere"


def test_a_run_killed_before_its_first_checkpoint_begins_with_the_same_bits(
    tmp_path: Path, server: Hosted, whole: bytes
) -> None:
    opened(tmp_path).close()
    place = tmp_path / "run" / "checkpoints" / "round-00000"
    for file in place.iterdir():
        file.unlink()
    place.rmdir()
    assert through(coordinate.resume(tmp_path / "run", lambda line: None)) == [1, 2, 3, 4]
    assert final(tmp_path) == whole


def test_the_server_begins_with_the_adapter_that_the_run_file_names(
    tmp_path: Path, server: Hosted, base: Base
) -> None:
    began = Adapter({name: tensor + 0.5 for name, tensor in lora.first(base.targets, 2, 9).items()})
    files.write(tmp_path / "tuned", began, base)
    named = f"adapter.start={tmp_path / 'tuned'}"
    with closing(opened(tmp_path, named)) as run:
        place = tmp_path / "run" / "checkpoints" / "round-00000"
        assert checkpoint.load(place).state.adapter == began
        assert run.follower.order.settings["adapter"]["start"] == "tuned"  # no path of this machine
    shutil.rmtree(tmp_path / "tuned")
    shutil.rmtree(place)  # as if killed before it; the copy in the run folder is enough
    assert through(coordinate.resume(tmp_path / "run", lambda line: None)) == [1, 2, 3, 4]
    after = files.read(tmp_path / "run" / "adapter", base)
    moved = [after[name] - tensor for name, tensor in began.items()]  # its sites move all numbers alike
    assert all(np.allclose(each, moved[0].flat[0], atol=1e-5) for each in moved)
    card = (tmp_path / "run" / "adapter" / "README.md").read_text()
    assert "started from" in card


def test_an_adapter_to_begin_with_that_does_not_fit_writes_nothing(tmp_path: Path, server: Hosted) -> None:
    with pytest.raises(AdapterError, match="there is no such folder"):
        opened(tmp_path, f"adapter.start={tmp_path / 'nowhere'}")
    assert not (tmp_path / "run").exists()


def test_pairs_from_an_adapter_are_refused_since_sites_could_not_compare_with_it(
    tmp_path: Path, server: Hosted
) -> None:
    with pytest.raises(SettingsError, match=r"'dpo' compares with the adapter .* leave out adapter\.start"):
        opened(tmp_path, "adapter.start=tuned", "tuning.objective.name=dpo")
    assert not (tmp_path / "run").exists()


def test_no_moment_of_the_start_leaves_a_folder_that_would_be_run_here(
    tmp_path: Path, server: Hosted, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kill after any of the files: the folder is a run over silos, or no run and free to begin in."""
    for written in range(1, 5):
        left = written
        real = write_atomic

        def dying(path: Path, content: str | bytes, real: Callable[..., Path] = real) -> Path:
            nonlocal left
            left -= 1
            if not left:
                raise KeyboardInterrupt
            return real(path, content)

        output = tmp_path / str(written)
        with monkeypatch.context() as patch:
            patch.setattr(folder, "write_atomic", dying)
            with suppress(KeyboardInterrupt):
                opened(output).close()
        assert folder.is_over_silos(output / "run") or not folder.is_run(output / "run")
        if not folder.is_run(output / "run"):
            opened(output).close()


@pytest.mark.parametrize(
    ("overrides", "word"),
    [
        (["machine.workers=2"], "remove it from a run file over silos"),
        (["algorithm.name=nothing"], "nothing"),
        (["aggregation.name=side"], "'side' adds 32 side ranks .* set .aggregation. name = \"product\""),
        (['silos.sites=["x", "y"]'], r"no site of silos.sites \(x, y\) .* \(connected: a, b\)"),
    ],
)
def test_what_cannot_be_run_writes_nothing(
    tmp_path: Path, server: Hosted, overrides: list[str], word: str
) -> None:
    with pytest.raises(ShepherdError, match=word):
        opened(tmp_path, *overrides)
    assert not (tmp_path / "run").exists()


def test_no_site_at_all_writes_nothing(tmp_path: Path, server: Hosted) -> None:
    server.connected_ = []
    with pytest.raises(FederationError, match=r"no site is connected \(connected: none\)"):
        opened(tmp_path)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("role", ["org_admin", "member", None])
def test_who_may_not_submit_is_told_before_anything_is_made(
    tmp_path: Path, server: Hosted, monkeypatch: pytest.MonkeyPatch, role: str | None
) -> None:
    admin = SimpleNamespace(name="max", role=role)
    monkeypatch.setattr(coordinate, "kits", SimpleNamespace(read=lambda kit, kind: admin))
    with pytest.raises(ShepherdError, match=f"max has the role {role} .* may not submit a run"):
        opened(tmp_path)
    assert not (tmp_path / "run").exists()
    assert server.logins == 0


def test_a_site_of_the_run_that_is_away_is_named(tmp_path: Path, server: Hosted) -> None:
    words: list[str] = []
    opened(tmp_path, 'silos.sites=["a", "x"]', words=words).close()
    assert words[0] == "sites: a, x (not connected: x)"


def test_answers_need_data_here_and_their_lack_ends_nothing(tmp_path: Path, server: Hosted) -> None:
    words: list[str] = []
    run = opened(tmp_path, "evaluation.answers=4", words=words)
    with closing(run):
        list(run.rounds())
        assert run.finish()["answers"] == {}
    assert any("answers are not scored" in line and "nowhere.jsonl" in line for line in words)
    assert (tmp_path / "run" / "adapter" / "README.md").is_file()


def test_answers_are_scored_on_the_coordinators_own(tmp_path: Path, server: Hosted) -> None:
    own = ["data.source=world", "data.limit=60", "data.holdout=0.2", "evaluation.max_new_tokens=2"]
    run = opened(tmp_path, "evaluation.answers=2", *own)
    with closing(run):
        list(run.rounds())
        assert run.finish()["answers"]
    assert len((tmp_path / "run" / "answers.jsonl").read_text().splitlines()) >= 2


def test_the_other_commands_take_the_folder_or_refuse_in_one_sentence(tmp_path: Path, server: Hosted) -> None:
    through(opened(tmp_path))
    path = tmp_path / "run"

    page = report.write(path)
    assert page.is_file()
    assert answerer.generate(path, "Name a colour.", max_new_tokens=1) is not None

    with pytest.raises(FolderError, match=r"over silos; continue it with `shepherd resume"):
        resuming.resume(path)
    with pytest.raises(FolderError, match="over silos, whose data are not here"):
        compared(settings(tmp_path), CompareSpec(locals=None, variants=(), match="steps", seeds=1))
    with pytest.raises(FolderError, match="holds another run"):
        opened(tmp_path)


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"kit": 3}', json.dumps({"kit": "k", "job": None, "order": {"run": "x"}})]
)
def test_a_spoilt_record_is_said_by_its_file(tmp_path: Path, server: Hosted, text: str) -> None:
    opened(tmp_path).close()
    (tmp_path / "run" / folder.SILOS).write_text(text)
    with pytest.raises(FolderError, match=r"silos\.json cannot be read"):
        coordinate.resume(tmp_path / "run")


def test_a_run_of_one_process_is_none_over_silos(tmp_path: Path) -> None:
    folder.create(tmp_path / "run", parse(RUN)).close()
    with pytest.raises(FolderError, match="does not hold a run over silos"):
        record.kit_and_job(tmp_path / "run")
    with pytest.raises(SettingsError):
        overridden(parse(RUN), ["silos.deadline_s=inf"])


def test_how_large_a_checkpoint_may_be_is_known_to_some_per_cent(tmp_path: Path, server: Hosted) -> None:
    run = opened(tmp_path)
    with closing(run):
        state = checkpoint.load(run.holder.checkpoints / "round-00000").state
        assert run.follower.max_file_bytes == pytest.approx(1.05 * state.adapter.nbytes + 8 * 2**20, abs=2)


def test_a_server_that_would_fill_the_disk_is_refused(tmp_path: Path, server: Hosted) -> None:
    server.fetching = [{"of": 2**40, "data": base64.b64encode(b"x").decode()}]
    run = opened(tmp_path)
    with closing(run), pytest.raises(FederationError, match="is invalid"):
        list(run.rounds())
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["round-00000"]


def test_no_share_of_more_than_a_half_is_ordered(tmp_path: Path, server: Hosted) -> None:
    with pytest.raises(SettingsError, match=r"over silos, set it to 0\.5 or less"):
        opened(tmp_path, "federation.max_share=0.8")
    assert not (tmp_path / "run").exists()
