"""A run over silos from beginning to end: server, two sites, two rounds, all of them processes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

pytest.importorskip("nvflare")

from benchmarks import silos_same
from shepherd.machine import memory
from shepherd.model import files
from shepherd.overrides import parse
from shepherd.run import checkpoint
from shepherd.run.folder import planned
from shepherd.run.loading import load_base
from shepherd.run.log import read_rows
from shepherd.silos import loopback
from shepherd.silos.coordinator import coordinate
from shepherd.silos.loopback import Loopback
from shepherd.silos.site import audit, released

ROUNDS = 2
RUN: dict[str, Any] = {
    "seed": 5,
    "model": {"base": "tiny"},
    "adapter": {"rank": 4},
    "data": {"source": "world", "template": "alpaca-short", "holdout": 0.1, "limit": 72},
    "split": {"clients": 2, "by": "iid"},
    "federation": {"rounds": ROUNDS},
    "silos": {"deadline_s": 60.0},
    "tuning": {"max_steps": 2, "batch_size": 8, "learning_rate": 0.004},
    "transforms": [{"name": "clip", "norm": 1.0}],
    "evaluation": {"examples": 16, "answers": 0},
}


@dataclass(frozen=True)
class Ran:
    """A run that is over, and whom it went over."""

    folder: Path
    sites: dict[str, Path]
    loopback: Loopback
    said: list[str]
    results: dict[str, Any]


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Ran:
    place = tmp_path_factory.mktemp("quick")
    settings = parse({**RUN, "output": str(place / "run")}, "the test")
    sites = loopback.write_sites(settings, place / "sites")
    said: list[str] = []
    with loopback.running(place / "federation", sites) as made:
        run = coordinate.open_run(settings, made.admin, said.append)
        assert [row["round"] for _, row in run.rounds()] == [1, 2]
        results = run.finish()
    return Ran(place / "run", sites, made, said, results)


@pytest.fixture
def one_thread() -> Iterator[None]:
    before = memory.threads()
    yield
    memory.use_threads(before)


def test_the_final_adapter_has_the_bits_of_the_same_run_in_process(ran: Ran, one_thread: None) -> None:
    """Law 2, with different processes, a wire and a server between the two ends."""
    ended = list(silos_same.simulated(planned(ran.folder), ran.sites))
    assert len(ended) == ROUNDS
    expected = ended[-1][0].adapter
    losses = [
        {client: released.rounded(m["loss"], m["trained_tokens"]) for client, m in report.metrics.items()}
        for _, report in ended
    ]
    last = checkpoint.latest(ran.folder / "checkpoints")
    assert last is not None
    found = checkpoint.load(last).state
    assert found.round == ROUNDS
    assert found.adapter.keys() == expected.keys()
    for name in expected:
        assert np.array_equal(found.adapter[name].view(np.uint32), expected[name].view(np.uint32)), name
    assert [row["losses"] for row in read_rows(ran.folder)[1:]] == losses


def test_the_run_folder_is_whole(ran: Ran) -> None:
    rows = read_rows(ran.folder)
    assert [row["round"] for row in rows] == [0, 1, 2]
    for row in rows[1:]:
        assert row["cohort"] == ["site-1", "site-2"]
        assert row["failures"] == {}
        assert row["steps"] == 4
        assert set(row["heldout"]["client"]) == {"site-1", "site-2"}
    assert rows[-1]["taken"] == {"site-1": 32, "site-2": 32}
    settings = planned(ran.folder)
    adapter = files.read(ran.results["adapter"], load_base(settings))
    last = checkpoint.latest(ran.folder / "checkpoints")
    assert last is not None
    assert adapter == checkpoint.load(last).state.adapter
    card = (ran.results["adapter"] / "README.md").read_text()
    assert "over 2 clients in 2 rounds" in card
    assert "site-1" not in card  # who took part is for those who know it already


def test_the_audit_logs_say_what_left(ran: Ran) -> None:
    for site in ran.sites:
        events = audit.events(ran.loopback.kit(site) / "shepherd" / audit.FILE)
        trained = [event.left for event in events if event.kind == "train" and event.left]
        assert [event.what for event in events if event.kind == "train"] == ["granted", "answered"] * ROUNDS
        assert len({event.run for event in events}) == 1
        metrics = ("examples", "loss", "steps", "tokens", "trained_tokens")
        assert [tuple(left.metrics) for left in trained] == [metrics] * ROUNDS
        sent = [row["bytes_up"] // 2 for row in read_rows(ran.folder)[1:]]
        assert all(0 < left.bytes - tensors < 40_000 for left, tensors in zip(trained, sent, strict=True))


def test_nothing_of_it_runs_on(ran: Ran) -> None:
    commands = [one.info["cmdline"] or [] for one in psutil.process_iter(["cmdline"])]
    assert not [words for words in commands if str(ran.loopback.folder) in " ".join(words)]
