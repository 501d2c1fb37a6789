"""A whole federation on this machine, with real processes, for demos, tests and benchmarks."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tomli_w

from shepherd import world
from shepherd.consent import NOTHING, Consent
from shepherd.data import pipeline
from shepherd.data.examples import Example
from shepherd.errors import SilosError
from shepherd.model.base import load_tokenizer
from shepherd.model.digest import digest
from shepherd.run.loading import placed
from shepherd.settings import TINY, RunSettings
from shepherd.silos.flare import provision
from shepherd.silos.flare.session import session
from shepherd.silos.flare.supervise import bound
from shepherd.silos.site.policy import visit_length
from shepherd.silos.site.site_settings import PolicyTable

MAX_LOCAL_SITES = 20
"""Most sites on one machine: each is three processes, one with its own copy of the base."""
STARTUP_S, STARTUP_PER_SITE_S = 60.0, 10.0
"""Time for all sites to connect, and more for each, since they share the CPU."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Loopback:
    """A federation that runs on this machine."""

    folder: Path
    sites: tuple[str, ...]

    @property
    def admin(self) -> Path:
        """The administrator's kit."""
        return self.folder / "admins" / "admin"

    def kit(self, site: str) -> Path:
        """A site's kit."""
        return self.folder / "sites" / site

    def log(self, who: str) -> Path:
        """The log of what the server or a site has printed."""
        return self.folder / "logs" / f"{who}.log"


@contextmanager
def running(
    folder: Path,
    sites: Mapping[str, Path],
    host: str = "localhost",
    within: Mapping[str, Sequence[str]] = {},
) -> Iterator[Loopback]:
    """Create a federation in `folder`, and run its server and sites until the end of the block.

    Args:
        sites: name of each site -> its site.toml.
        host: an address of this machine that the sites can reach.
        within: name of a site -> words before its command, such as those that run it in its own network.

    Raises:
        SilosError: the folder exists already, or the sites do not connect.
    """
    provision.create(folder, f"{host}:{free_port()}", list(sites))
    made = Loopback(folder=folder, sites=tuple(sites))
    (folder / "logs").mkdir()
    with ExitStack() as ends:
        ends.enter_context(started(made, "server", ["server", str(folder)]))
        for site, config in sites.items():
            words = ["site", str(made.kit(site)), "--config", str(config)]
            ends.enter_context(started(made, site, words, within.get(site, ())))
        _await(made)
        yield made


@contextmanager
def started(
    made: Loopback, who: str, words: Sequence[str], within: Sequence[str] = ()
) -> Iterator[subprocess.Popen[bytes]]:
    """Run `shepherd silos WORDS ...` until the end of the block, with its output in its log.

    It ends with this process, even if this process is killed.
    """
    command = bound([*within, sys.executable, "-m", "shepherd", "silos", *words], signal.SIGTERM)
    with open(made.log(who), "ab") as log:
        child = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
    try:
        yield child
    finally:
        child.terminate()
        try:
            child.wait(30)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()


def write_sites(
    settings: RunSettings,
    folder: Path,
    names: Callable[[int], str] = "site-{}".format,
    policy: Mapping[str, object] | None = None,
    consent: Consent = NOTHING,
) -> dict[str, Path]:
    """Split a run file's data into sites: for each client a folder with its data and a site.toml.

    The sites belong to the author of the run file, so they allow what it asks for, score as it says and take
    examples in its order: the result equals that of the same run in one process. Not relaxed are the bounds
    on the examples or sites behind a released number (`min_examples`, `min_cohort`), the modules outside the
    package that may run, and the fixed rules of every site (on `clip_norm`, and the optimiser's `betas`,
    `momentum` and decay times the rate).

    Args:
        names: name of the site with a number, from 1.
        policy: keys of [policy] that override the derived ones.

    Returns:
        Name of each site -> its site.toml.

    Raises:
        SilosError: there are more clients than one machine should run as sites; nothing is written then.
    """
    division = pipeline.divide(settings, consent.plugins)
    base = settings.model.base
    if len(division.clients) > MAX_LOCAL_SITES:
        raise SilosError(
            f"{len(division.clients)} clients would need as many sites on this machine, and the limit is"
            f" {MAX_LOCAL_SITES}; set split.clients=3"
        )
    if settings.data.template == "chat":
        settings = pipeline.dated(settings, load_tokenizer(placed(settings.model), consent))  # as in the run
    allowed = {
        **_policy(settings, [max(1, len(places)) for places in division.clients.values()]),
        **(policy or {}),
    }
    folder.mkdir(parents=True, exist_ok=True)
    return {
        names(number): write_site(
            folder / names(number),
            division.of(places),
            allowed,
            base,
            scoring=_scoring(settings),
            order_seed=settings.seed,
            micro_batch_tokens=settings.machine.micro_batch_tokens,
            duplicates=settings.data.duplicates,
        )
        for number, places in enumerate(division.clients.values(), 1)
    }


def _policy(settings: RunSettings, sizes: Sequence[int]) -> dict[str, object]:
    """The [policy] keys that a run needs to be allowed at sites of these sizes.

    Args:
        sizes: number of examples of each site, before it holds some out.
    """
    usual, data, tuning, rounds = PolicyTable(), settings.data, settings.tuning, settings.federation.rounds
    algorithms, transforms = [settings.algorithm.name], [part.name for part in settings.transforms]
    steps = max(visit_length(settings, size).steps for size in sizes)
    left = (1 - data.holdout) * min(sizes) / 2  # a lower bound, since each category's share is rounded
    epochs = tuning.epochs or (tuning.max_steps or 0) * tuning.batch_size / left
    return {
        "max_rank": max(usual.max_rank, settings.adapter.rank),
        "max_dropout": max(usual.max_dropout, settings.adapter.dropout),
        "max_learning_rate": max(usual.max_learning_rate, tuning.learning_rate),
        "max_steps": max(usual.max_steps, steps),
        "max_epochs": max(usual.max_epochs, epochs),
        "max_rounds": max(usual.max_rounds, rounds),
        "rounds_per_month": max(usual.rounds_per_month, 2 * rounds),  # some may be repeated
        "algorithms": _with(usual.algorithms, filter(_is_inside, algorithms)),
        "transforms": _with(usual.transforms, filter(_is_inside, transforms)),
        "optimisers": _with(usual.optimisers, filter(_is_inside, [tuning.optimiser.name])),
        "objectives": _with(usual.objectives, filter(_is_inside, [tuning.objective.name])),
        "loss_on": _with(usual.loss_on, [tuning.loss_on]),
        "dates": [data.date] if data.date else [],
        "metrics": [*usual.metrics, *(["heldout"] if data.holdout else [])],
        "max_tokens": sorted({*usual.max_tokens, data.max_tokens}),
        "min_batch": min(usual.min_batch, settings.tuning.batch_size),
        "system_prompts": [] if data.system is None else [data.system],
    }


def _with(usual: Iterable[str], asked: Iterable[str]) -> list[str]:
    return list(dict.fromkeys([*usual, *asked]))


def _is_inside(module: str) -> bool:
    """Whether a module is part of this package: any other has to be listed by a person."""
    return "." not in module


def _scoring(settings: RunSettings) -> dict[str, object]:
    data = settings.data
    return {
        "share": data.holdout,
        "seed": settings.data_seed,
        "template": data.template,
        "date": data.date,
        "max_tokens": data.max_tokens,
        "examples": settings.evaluation.examples,
    }


def write_site(
    folder: Path,
    examples: Sequence[Example],
    policy: Mapping[str, object] | None = None,
    base: str = TINY,
    *,
    scoring: Mapping[str, object] | None = None,
    order_seed: int | None = None,
    micro_batch_tokens: Literal["auto"] | int = "auto",
    duplicates: Literal["drop", "keep"] = "drop",
) -> Path:
    """Write a site's folder: data.jsonl, and a site.toml that allows the base.

    The site has one thread, since several sites share this machine.

    Args:
        base: "tiny" for the embedded base, or a folder.
        order_seed: seed of the order of examples; by default the site draws its own.

    Returns:
        The path of site.toml.
    """
    where = world.base_path() if base == TINY else Path(base).expanduser().resolve()
    folder.mkdir(parents=True)
    rows = (json.dumps(_row(example), ensure_ascii=False) + "\n" for example in examples)
    (folder / "data.jsonl").write_text("".join(rows), encoding="utf8")
    table = {
        "data": {
            "source": "data.jsonl",
            **({} if duplicates == "drop" else {"duplicates": duplicates}),
            **({"group": "group"} if any(example.group for example in examples) else {}),
        },
        "trainer": {
            "threads": 1,
            "joins_per_hour": 3600,  # for trying many runs in a row
            **({} if order_seed is None else {"order_seed": order_seed}),
            **({} if micro_batch_tokens == "auto" else {"micro_batch_tokens": micro_batch_tokens}),
        },
        "bases": [
            {
                "name": base if base == TINY else where.name,
                "folder": TINY if base == TINY else str(where),
                "sha256": digest(where),
            }
        ],
        "policy": dict(policy or {}),
        "scoring": dict(scoring or {}),
    }
    config = folder / "site.toml"
    config.write_text(tomli_w.dumps(table), encoding="utf8")
    config.chmod(0o600)
    return config


def _row(example: Example) -> dict[str, str]:
    return {
        "instruction": example.instruction,
        "context": example.context,
        "response": example.response,
        "category": example.category,
        **({"group": example.group} if example.group else {}),
    }


def free_port() -> int:
    """A TCP port of this machine that is free now."""
    with socket.socket() as trial:
        trial.bind(("", 0))
        return int(trial.getsockname()[1])


def _await(made: Loopback) -> None:
    seconds = STARTUP_S + STARTUP_PER_SITE_S * len(made.sites)
    ends = time.monotonic() + seconds
    found: list[str] = []
    while time.monotonic() < ends:
        try:
            with session(made.admin) as server:
                while time.monotonic() < ends:
                    found = server.connected()
                    if set(made.sites) <= set(found):
                        return
                    time.sleep(0.3)
        except SilosError:  # the server is not up yet
            time.sleep(0.3)
    missing = ", ".join(sorted(set(made.sites) - set(found)))
    raise SilosError(
        f"{missing} did not connect within {seconds:g} s; read the logs in {made.folder / 'logs'}"
    )
