"""A real server and real sites on this machine, whose trainers are stubs: what federation itself takes."""

from __future__ import annotations

import os
import secrets
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np

import shepherd
from benchmarks.common import ROOT
from shepherd.core import Adapter, ServerState
from shepherd.run import checkpoint
from shepherd.run.checkpoint import Checkpoint
from shepherd.silos import loopback
from shepherd.silos.coordinator.job_follower import JobFollower
from shepherd.silos.flare import provision
from shepherd.silos.flare.supervise import Child, supervise
from shepherd.silos.loopback import Loopback
from shepherd.silos.protocol.jobspec import JobSpec
from shepherd.version import version

RANK = 16
MODULES = 224  # those of a base with 32 layers of seven
HOME = "shepherd"
NO_TABLES: Mapping[str, object] = {}


def adapter(size: int) -> Adapter:
    """An adapter of about `size` bytes: one module where it is small, else those of a whole base."""
    modules = MODULES if size >= 2**20 else 1
    rank = RANK if size >= 2**20 else 2
    width = max(1, size // (2 * 4 * rank * modules))
    rng = np.random.default_rng(0)
    tensors: dict[str, np.ndarray] = {}
    for place in range(modules):
        name = f"base_model.model.layers.{place // 7}.part_{place % 7}"
        tensors[f"{name}.lora_A.weight"] = rng.standard_normal((rank, width), np.float32)
        tensors[f"{name}.lora_B.weight"] = rng.standard_normal((width, rank), np.float32)
    return Adapter(tensors)


def order(
    sites: Sequence[str], rounds: int, wave: int = 4, tables: Mapping[str, object] = NO_TABLES
) -> JobSpec:
    """A run in which nothing is scored, so that every request is one to train; `tables` are added to it."""
    settings = {
        "output": "unused",
        "model": {"base": "stub"},
        "data": {"source": "stub", "holdout": 0.0},
        "adapter": {"rank": RANK},
        "federation": {"rounds": rounds, "weights": "equal" if "secure" in tables else "examples"},
        "silos": {"max_in_flight": wave, "deadline_s": 300.0, "sites": list(sites)},
        "tuning": {"max_steps": 1},
        "evaluation": {"answers": 0},
        **tables,
    }
    return JobSpec(
        run=secrets.token_hex(8),
        base="0" * 64,
        fingerprint="stub",
        version=version(),
        sites=tuple(sites),
        settings=settings,
    )


def first(folder: Path, adapter: Adapter, transforms: tuple[object, ...] = ()) -> Path:
    """The checkpoint that a run begins with; `transforms` are the states of its transforms."""
    notes: dict[str, object] = {"positions": {}, "row": None, "base": "stub"}
    return checkpoint.save(
        folder,
        Checkpoint(state=ServerState(round=0, adapter=adapter, transforms=transforms), notes=notes),
        keep=1,
    )


def names(count: int) -> list[str]:
    """
    >>> names(2)
    ['site-01', 'site-02']
    """
    return [f"site-{number:02d}" for number in range(1, count + 1)]


@contextmanager
def running(folder: Path, sites: Sequence[str]) -> Iterator[Loopback]:
    """The server as `shepherd silos server` runs it; of a site, FLARE's processes and a stub beside them."""
    provision.create(folder, f"localhost:{loopback.free_port()}", sites)
    made = Loopback(folder=folder, sites=tuple(sites))
    (folder / "logs").mkdir()
    with ExitStack() as ends:
        ends.enter_context(loopback.started(made, "server", ["server", str(folder)]))
        ends.enter_context(_supervised(made))
        loopback._await(made)
        yield made


@contextmanager
def _supervised(made: Loopback) -> Iterator[None]:
    stop = threading.Event()
    threads = [threading.Thread(target=_site, args=(made, site, stop)) for site in made.sites]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def _site(made: Loopback, site: str, stop: threading.Event) -> None:
    kit = made.kit(site)
    paths = os.pathsep.join([str(ROOT), str(Path(shepherd.__file__).parents[1])])
    environment = {"PYTHONPATH": paths}
    stub = [sys.executable, "-m", "benchmarks.silos_stub", site, str(kit / HOME)]
    flare = [sys.executable, "-m", "shepherd.silos.flare.patches.site_parent", "site", str(kit), site]
    with open(made.log(site), "a", encoding="utf8") as log:
        supervise(
            kit / HOME,
            [Child("trainer", stub, environment), Child("flare", flare, environment)],
            lambda line: print(line, file=log, flush=True),
            stop,
        )


def followed(made: Loopback, order: JobSpec, state: Path, scratch: Path) -> Iterator[int]:
    """Have the server do the order; yield the count of finished rounds as it grows."""
    said: list[str] = []
    follower = JobFollower(
        kit=made.admin,
        order=order,
        cohort=len(order.sites),
        state=lambda: state,
        scratch=scratch,
        echo=said.append,
    )
    for news in follower.news():
        for line in [*said, *news.said]:
            print(line, flush=True)
        said.clear()
        for row in news.rows:
            follower.rows = row["round"] + 1
            if row.get("failures"):
                print(f"round {row['round']}: {row['failures']}", flush=True)
            yield row["round"]
        if news.outcome and "error" in news.outcome:
            raise RuntimeError(news.outcome["error"])
