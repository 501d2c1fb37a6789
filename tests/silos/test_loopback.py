"""What a federation on this machine gives its sites to begin with."""

from __future__ import annotations

import json
import shutil
import signal
import socket
import stat
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import psutil
import pytest

pytest.importorskip("nvflare")

from shepherd import world
from shepherd.consent import Consent
from shepherd.data import pipeline
from shepherd.errors import BaseError, SilosError
from shepherd.overrides import parse
from shepherd.settings import MachineTable, RunSettings
from shepherd.silos import loopback
from shepherd.silos.flare import provision
from shepherd.silos.site import allowed_bases
from shepherd.silos.site.preview import check
from shepherd.silos.site.site_settings import read


def settings(clients: int = 3, **data: Any) -> RunSettings:
    return parse(
        {
            "model": {"base": "tiny"},
            "data": {"source": "world", "limit": 60, "holdout": 0.2, **data},
            "split": {"clients": clients, "by": "iid"},
        }
    )


def test_each_site_is_given_one_clients_share(tmp_path: Path) -> None:
    run = settings()
    sites = loopback.write_sites(run, tmp_path / "sites")
    division = pipeline.divide(run)

    assert list(sites) == ["site-1", "site-2", "site-3"]
    for config, places in zip(sites.values(), division.clients.values(), strict=True):
        lines = (config.parent / "data.jsonl").read_text(encoding="utf8").splitlines()
        wanted = [(each.instruction, each.response, each.category) for each in division.of(places)]
        found = [
            tuple(json.loads(line)[key] for key in ("instruction", "response", "category")) for line in lines
        ]
        assert found == wanted
    every = Counter(
        line
        for config in sites.values()
        for line in (config.parent / "data.jsonl").read_text(encoding="utf8").splitlines()
    )
    assert set(every.values()) == {1}


def test_each_site_has_the_policy_that_is_given(tmp_path: Path) -> None:
    for config in loopback.write_sites(settings(), tmp_path / "sites", policy={"max_rank": 3}).values():
        assert read(config).policy.max_rank == 3


BEYOND: dict[str, dict[str, Any]] = {
    "max_rank": {"adapter": {"rank": 64}},
    "max_dropout": {"adapter": {"dropout": 0.9}},
    "max_learning_rate": {"tuning": {"learning_rate": 0.5}},
    "max_steps": {"tuning": {"max_steps": 1500, "batch_size": 8}},
    "max_steps of epochs": {"tuning": {"epochs": 700.0, "batch_size": 8}},
    "max_epochs": {"tuning": {"epochs": 5.0}},
    "max_epochs of steps": {"tuning": {"max_steps": 40, "batch_size": 16}},
    "max_rounds": {"federation": {"rounds": 500}},
    "algorithms": {"algorithm": {"name": "fedprox"}},
    "loss_on": {"tuning": {"loss_on": "all"}},
    "min_batch": {"tuning": {"batch_size": 4}},
    "system_prompts": {"data": {"system": "Be brief."}},
    "max_tokens": {"data": {"max_tokens": 300}},
    "dates": {"data": {"date": "2026-11-28"}},
}


@pytest.mark.parametrize("rule", BEYOND)
def test_the_sites_allow_what_the_run_file_asks_for(tmp_path: Path, rule: str) -> None:
    """They belong to whoever wrote it, so what is beyond the usual policy is no secret kept from anybody."""
    usual = {"data": {"source": "world", "limit": 60, "holdout": 0.2}, "split": {"clients": 3, "by": "iid"}}
    tables = {
        name: {**usual.get(name, {}), **BEYOND[rule].get(name, {})}
        for name in usual.keys() | BEYOND[rule].keys()
    }
    run = parse({"model": {"base": "tiny"}, **tables})
    for config in loopback.write_sites(run, tmp_path / "sites").values():
        assert check(config, run).faults == ()
        assert read(config).policy.rounds_per_month > run.federation.rounds


def test_the_tokens_of_a_pass_that_the_run_file_sets_are_the_sites_most(tmp_path: Path) -> None:
    usual = loopback.write_sites(settings(), tmp_path / "usual")
    run = settings().model_copy(update={"machine": MachineTable(micro_batch_tokens=64)})
    fewer = loopback.write_sites(run, tmp_path / "fewer")
    assert {read(config).trainer.micro_batch_tokens for config in usual.values()} == {16384}
    assert {read(config).trainer.micro_batch_tokens for config in fewer.values()} == {64}


def test_code_from_outside_is_listed_by_a_person_alone(tmp_path: Path) -> None:
    run = settings()
    outside = run.algorithm.model_copy(update={"name": "their.module"})
    run = run.model_copy(update={"algorithm": outside})
    for config in loopback.write_sites(run, tmp_path / "sites").values():
        assert "their.module" not in read(config).policy.algorithms


def test_the_day_that_a_template_prints_is_the_one_that_the_run_will_have(tmp_path: Path) -> None:
    base = shutil.copytree(world.base_path(), tmp_path / "base")
    (base / "chat_template.jinja").write_text(
        "{{ strftime_now('%d') }} {% for m in messages %}{{ m.content }} {% endfor %}"
    )
    run = settings(template="chat").model_copy(
        update={"model": settings().model.model_copy(update={"base": str(base)})}
    )
    days = {date.today().isoformat()}
    sites = loopback.write_sites(run, tmp_path / "sites")
    days |= {date.today().isoformat()}  # it may be midnight
    assert {read(config).scoring.date for config in sites.values()} <= days


def test_the_embedded_base_may_have_a_chat_template(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = shutil.copytree(world.base_path(), tmp_path / "base")
    (base / "chat_template.jinja").write_text("{% for m in messages %}{{ m.content }} {% endfor %}")
    monkeypatch.setattr(world, "base_path", lambda: base)
    sites = loopback.write_sites(settings(template="chat"), tmp_path / "sites")
    assert {read(config).scoring.template for config in sites.values()} == {"chat"}


def test_what_a_person_agreed_to_holds_for_its_tokenizer_too(tmp_path: Path) -> None:
    base = shutil.copytree(world.base_path(), tmp_path / "base")
    (base / "chat_template.jinja").write_text("{% for m in messages %}{{ m.content }} {% endfor %}")
    table = settings().model.model_copy(update={"base": str(base), "trust_remote_code": True})
    run = settings(template="chat").model_copy(update={"model": table})
    with pytest.raises(BaseError, match="--trust-remote-code"):
        loopback.write_sites(run, tmp_path / "sites")
    loopback.write_sites(run, tmp_path / "sites", consent=Consent(remote_code=True))


def test_its_site_toml_allows_the_embedded_base_and_its_own_data(tmp_path: Path) -> None:
    config = loopback.write_sites(settings(), tmp_path / "sites")["site-2"]
    site = read(config)
    (allowed,) = allowed_bases.allowed(site.bases)
    assert stat.S_IMODE(config.stat().st_mode) == 0o600
    assert site.bases[0].name == "tiny"
    assert allowed == site.bases[0].sha256
    assert check(config)


def test_a_policy_is_written_where_one_is_given(tmp_path: Path) -> None:
    examples = pipeline.divide(settings()).reading.examples[:8]
    config = loopback.write_site(tmp_path / "a", examples, {"max_rank": 4, "algorithms": ["fedavg"]})
    policy = read(config).policy
    assert (policy.max_rank, tuple(policy.algorithms)) == (4, ("fedavg",))


def test_more_sites_than_a_machine_should_run_are_refused(tmp_path: Path) -> None:
    many = settings(clients=loopback.MAX_LOCAL_SITES + 1)
    with pytest.raises(SilosError, match=r"21 clients would need as many sites .* split\.clients=3"):
        loopback.write_sites(many, tmp_path / "sites")
    assert not (tmp_path / "sites").exists()


def test_a_free_port_can_be_listened_at() -> None:
    with socket.create_server(("", loopback.free_port())):
        pass


def test_where_things_are(tmp_path: Path) -> None:
    made = loopback.Loopback(folder=tmp_path / "f", sites=("a",))
    provision.create(made.folder, "localhost:8002", list(made.sites))
    assert (made.admin / "startup").is_dir()
    assert (made.kit("a") / "startup").is_dir()
    assert made.log("a") == tmp_path / "f" / "logs" / "a.log"


STARTED = """
import sys, time
from pathlib import Path
from shepherd.silos import loopback
made = loopback.Loopback(folder=Path(sys.argv[1]), sites=())
with loopback.started(made, "server", ["server", sys.argv[1]]) as child:
    print(child.pid, flush=True)
    time.sleep(60)
"""


def test_whoever_kills_it_kills_the_federation(tmp_path: Path) -> None:
    made = loopback.Loopback(folder=tmp_path / "f", sites=("a",))
    provision.create(made.folder, f"localhost:{loopback.free_port()}", list(made.sites))
    made.log("server").parent.mkdir()
    words = [sys.executable, "-c", STARTED, str(made.folder)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        server = psutil.Process(int(parent.stdout.readline()))
        _until(lambda: "flare started" in made.log("server").read_text())
        flare = server.children(recursive=True)
        assert flare
        parent.send_signal(signal.SIGKILL)
    _until(lambda: not any(process.is_running() for process in (server, *flare)))
    assert "stopped" in made.log("server").read_text()


def _until(true: Callable[[], object], seconds: float = 30.0) -> None:
    ends = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < ends, "it took too long"
        time.sleep(0.05)
