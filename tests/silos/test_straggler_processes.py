"""A run over silos with a site that is slower than the others: all of it processes."""

from __future__ import annotations

import os
import signal
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("nvflare")

from benchmarks.silos_faults import process

from shepherd.overrides import parse
from shepherd.run.log import read_rows
from shepherd.silos import loopback
from shepherd.silos.coordinator import coordinate

pytestmark = pytest.mark.silos

RUN: dict[str, Any] = {
    "seed": 5,
    "model": {"base": "tiny"},
    "adapter": {"rank": 4},
    "data": {"source": "world", "template": "alpaca-short", "holdout": 0.0, "limit": 72},
    "split": {"clients": 3, "by": "iid"},
    "federation": {"rounds": 30, "weights": "equal"},
    "silos": {"deadline_s": 300.0, "start_s": 300.0, "silence_s": 120.0},
    "stragglers": {"min_updates": 2, "carry": True},
    "tuning": {"max_steps": 1, "batch_size": 16, "learning_rate": 0.004},
    "evaluation": {"answers": 0},
}
STOPPED_S = 10.0


def test_a_slow_site_is_late_and_its_update_is_carried(tmp_path: Path) -> None:
    """Its trainer stands still for a while; FLARE has its task stand until it answers."""
    settings = parse({**RUN, "output": str(tmp_path / "run")}, "the test")
    sites = loopback.write_sites(settings, tmp_path / "sites")
    with loopback.running(tmp_path / "federation", sites) as made:
        run = coordinate.open_run(settings, made.admin, lambda line: None)
        slow = process("trainer", "site-3", made)
        assert slow is not None
        for _, row in run.rounds():
            if row["round"] == 1:
                slow.send_signal(signal.SIGSTOP)
                threading.Timer(STOPPED_S, _go_on, [slow.pid]).start()
        run.finish()
    rows = read_rows(tmp_path / "run")
    late = [row["round"] for row in rows if "site-3" in row.get("late", ())]
    carried = {row["round"]: row["carried"]["site-3"] for row in rows if "site-3" in row.get("carried", {})}
    assert carried
    for taken, behind in carried.items():
        began = taken - behind
        assert began in late  # it is of the round that it was late in, and is not asked until it is taken
        assert all("site-3" not in row["cohort"] for row in rows if began < row["round"] <= taken)


def _go_on(process: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(process, signal.SIGCONT)
