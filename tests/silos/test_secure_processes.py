"""A run with [secure] over real processes: a server, three sites, and one of them killed within a round."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("nvflare")

from benchmarks.masking import PHASES
from benchmarks.silos_faults import process

from benchmarks import silos_same
from shepherd.core import Spending, Turns
from shepherd.errors import FederationError
from shepherd.machine import memory
from shepherd.overrides import parse
from shepherd.privacy import accountant
from shepherd.run import checkpoint, ledger
from shepherd.run.folder import planned
from shepherd.run.log import read_rows
from shepherd.silos import loopback
from shepherd.silos.coordinator import coordinate
from shepherd.silos.site import audit, privacy_ledger, site_settings
from shepherd.transforms.fixed_point import levels

pytestmark = pytest.mark.silos

ROUNDS = 3
RUN: dict[str, Any] = {
    "seed": 5,
    "model": {"base": "tiny"},
    "adapter": {"rank": 2, "targets": ["q_proj"]},
    "data": {"source": "world", "template": "alpaca-short", "holdout": 0.2, "limit": 90},
    "split": {"clients": 3, "by": "iid"},
    "federation": {"rounds": ROUNDS, "weights": "equal"},
    "silos": {"deadline_s": 300.0},
    "tuning": {"max_steps": 12, "batch_size": 8, "learning_rate": 0.004},
    "transforms": [{"name": "fixed_point", "norm": 1.0, "bits": 20}],
    "secure": {"ring_bits": 32},
    "evaluation": {"examples": 16, "answers": 0},
}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = memory.threads()
    yield
    memory.use_threads(before)


def _followed(run: Any, strike: Callable[[], None]) -> None:
    """Go through the rounds, and strike soon after the second one has begun."""
    for _, row in run.rounds():
        if row["round"] == 1:
            threading.Timer(0.5, strike).start()


def test_a_killed_trainer_fails_the_round_and_a_resumed_run_has_the_bits_of_one_process(
    tmp_path: Path,
) -> None:
    """Of three sites a sum needs all: the round is counted as failed, and starts again with fresh keys."""
    settings = parse({**RUN, "output": str(tmp_path / "run")}, "the test")
    sites = loopback.write_sites(settings, tmp_path / "sites")
    struck: list[bool] = []
    with loopback.running(tmp_path / "federation", sites) as made:

        def strike() -> None:
            found = process("trainer", "site-2", made)
            if found is not None:
                found.kill()
                struck.append(True)

        run = coordinate.open_run(settings, made.admin, lambda line: None)
        with (
            closing(run),
            pytest.raises(FederationError, match=r"round 2 has no secure sum, .*\(site-2: its trainer"),
        ):
            _followed(run, strike)
        assert struck == [True]
        assert [row["round"] for row in read_rows(tmp_path / "run")] == [0, 1]

        run = coordinate.resume(tmp_path / "run", lambda line: None)
        with closing(run):
            assert [row["round"] for _, row in run.rounds()] == [2, 3]
            run.finish()
        events = {site: audit.events(made.kit(site) / "shepherd" / audit.FILE) for site in sites}

    memory.use_threads(1)
    *_, (due, _) = silos_same.simulated(planned(tmp_path / "run"), sites)
    last = checkpoint.latest(tmp_path / "run" / "checkpoints")
    assert last is not None
    found = checkpoint.load(last).state
    for name, tensor in due.adapter.items():
        assert np.array_equal(found.adapter[name].view(np.uint32), tensor.view(np.uint32)), name
    for row in read_rows(tmp_path / "run")[1:]:
        assert (row["summed"], row["failures"], row["losses"]) == (list(sites), {}, {})
    for of_site in events.values():
        answered = [event.kind for event in of_site if event.what == "answered"]
        assert all(answered.count(phase) == ROUNDS for phase in PHASES)
        masked = [event for event in of_site if event.left is not None and event.left.masked]
        assert {event.kind for event in masked} == {"masked"}


def test_noise_inside_the_sum_is_accounted_at_the_server_and_in_the_ledger_of_each_site(
    tmp_path: Path,
) -> None:
    """All count the same epsilon, which only holds if each of the three adds its share."""
    noisy = {
        "federation": {"rounds": 2, "weights": "equal"},
        "transforms": [{"name": "skellam", "norm": 0.05, "noise": 2.0, "honest": 3, "bits": 20}],
        "privacy": {"delta": 1e-3},
        "output": str(tmp_path / "run"),
    }
    settings = parse({**RUN, **noisy}, "the test")
    policy = {
        "require_privacy": ["client"],
        "max_epsilon": 50.0,
        "require_secure_aggregation": True,
        "transforms": ["skellam"],
    }
    sites = loopback.write_sites(settings, tmp_path / "sites", policy=policy)
    with loopback.running(tmp_path / "federation", sites) as made:
        run = coordinate.open_run(settings, made.admin, lambda line: None)
        with closing(run):
            assert [row["round"] for _, row in run.rounds()] == [1, 2]
            run.finish()
        spent = {}
        for site, file in sites.items():
            data = site_settings.read(file).data
            spent[site] = privacy_ledger.read(privacy_ledger.ledger_of(made.kit(site) / "shepherd", data))

    due = accountant.epsilon([Spending(noise=2.0, sampling=Turns(every=1), steps=2, levels=levels(20))], 1e-3)
    claimed = ledger.read(tmp_path / "run")
    assert (claimed["noise"], claimed["epsilon"]) == (2.0, due)
    assert all(row["privacy"]["delta"] == 1e-3 for row in read_rows(tmp_path / "run")[1:])
    for entries in spent.values():
        assert [(entry.round, entry.unit, entry.spent.noise) for entry in entries] == [
            (0, "client", 2.0),
            (1, "client", 2.0),
        ]
        assert privacy_ledger.epsilon(entries, "client", 1e-3) == due
