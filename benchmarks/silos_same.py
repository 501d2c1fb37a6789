"""The same run in one process and over silos: the largest difference between the two final adapters (law 2).

A real server and three real sites on this machine, trainers and all, with the embedded world. Twice: the
plain user's way, `shepherd run` of one run file over a folder with one file a client, and with `--silos` over
sites that have those files; and with examples held out, `clip` and `ffa_lora`, against
`federation.simulation` over what the sites' own settings make of their data.
"""

from __future__ import annotations

import subprocess
import sys
from argparse import Namespace
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from safetensors.numpy import load_file

from benchmarks import common, setting
from benchmarks.common import Figures, Table
from shepherd import plugins, world
from shepherd.core import Federation, ServerState
from shepherd.data import pipeline
from shepherd.federation.clients import LocalClients
from shepherd.federation.simulation import Simulation
from shepherd.federation.summed import Summed
from shepherd.machine import memory
from shepherd.machine.executors import Inline
from shepherd.model import files, lora
from shepherd.overrides import dump
from shepherd.rounds import RoundReport, rounds, start
from shepherd.rounds.ranks import rank_at_site
from shepherd.run import checkpoint
from shepherd.run.folder import planned
from shepherd.run.loading import load_base
from shepherd.settings import RunSettings
from shepherd.silos import loopback
from shepherd.silos.coordinator import coordinate
from shepherd.silos.loopback import Loopback
from shepherd.silos.protocol.jobspec import settings_for_site
from shepherd.silos.site import released
from shepherd.silos.site.site_settings import SiteSettings, read, settings_at_site

Tensors = Mapping[str, np.ndarray]
SITES = 3
ONE = {"stack_size": 1, "workers": 1, "threads": 1}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = common.parser(__doc__)
    parser.add_argument("--rounds", type=int, default=3, help="default 3")
    parser.add_argument("--steps", type=int, default=8, help="optimiser steps a visit (default 8)")
    return common.run(parser.parse_args(arguments), measure, tables)


def measure(options: Namespace) -> Figures:
    with TemporaryDirectory() as scratch:
        place = Path(scratch)
        plain = _settings(options, place / "plain", holdout=0.0)
        sites = loopback.write_sites(plain, place / "sites")
        with loopback.running(place / "federation", sites) as made:
            pairs = {
                "shepherd run, and with --silos": _by_command(plain, made, sites, place),
                "the simulation, held out and clipped": _by_simulation(
                    _settings(options, place / "held", holdout=0.1), made, sites
                ),
            }
    compared = {what: compare(*pair) for what, pair in pairs.items()}
    return {
        "sites": SITES,
        "rounds": plain.federation.rounds,
        "steps_a_visit": plain.tuning.max_steps,
        "compared": compared,
        "passed": all(one["different"] == 0 for one in compared.values()),
    }


def _settings(options: Namespace, output: Path, *, holdout: float) -> RunSettings:
    rounds, steps, limit = (2, 1, 60) if options.quick else (options.rounds, options.steps, 240)
    held = {
        "transforms": [{"name": "clip", "norm": 1.0}],
        "algorithm": {"name": "ffa_lora"},
        "federation": {"weights": "equal"},
    }
    return setting.settings(
        "world",
        {
            "seed": options.seed,
            "output": str(output),
            "data": {"limit": limit, "holdout": holdout},
            "split": {"by": "iid", "clients": SITES},
            "federation": {"rounds": rounds},
            "selection": {"share": 1.0},
            "silos": {"deadline_s": 300.0},
            "tuning": {"max_steps": steps, "batch_size": 8},
            "machine": ONE,
            "evaluation": {"examples": 16, "answers": 0, "every": 1},
        },
        held if holdout else {},
    )


def _by_command(
    settings: RunSettings, made: Loopback, sites: Mapping[str, Path], place: Path
) -> tuple[Tensors, Tensors]:
    """The final adapters that two commands write from one run file."""
    run_file = place / "run.toml"
    run_file.write_text(dump(settings), encoding="utf8")
    data = place / "one-file-a-client"
    data.mkdir()
    for site, config in sites.items():
        (data / f"{site}.jsonl").write_bytes((config.parent / "data.jsonl").read_bytes())
    _shepherd(run_file, f"output={place / 'one'}", f"data.source={data}", "split.by=ready-made")
    _shepherd(run_file, f"output={place / 'over'}", "--silos", str(made.admin))
    one, over = (load_file(place / run / "adapter" / files.WEIGHTS) for run in ("one", "over"))
    return one, over


def _shepherd(run_file: Path, *words: str) -> None:
    command = [sys.executable, "-m", "shepherd", "run", str(run_file), *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"`shepherd run {' '.join(words)}` ended with {done.returncode}:\n{done.stderr}")


def _by_simulation(
    settings: RunSettings, made: Loopback, sites: Mapping[str, Path]
) -> tuple[Tensors, Tensors]:
    run = coordinate.open_run(settings, made.admin)
    try:
        for _, row in run.rounds():
            print(f"round {row['round']}: {row['failures'] or 'all answered'}", flush=True)
        last = checkpoint.latest(run.holder.checkpoints)
    finally:
        run.close()
    if last is None or (over := checkpoint.load(last).state).round != settings.federation.rounds:
        raise RuntimeError(f"{settings.output} holds no checkpoint of the last round")
    with one_thread():
        *_, (one, _) = simulated(planned(settings.output), sites)
    return one.adapter, over.adapter


def simulated(settings: RunSettings, sites: Mapping[str, Path]) -> Iterator[tuple[ServerState, RoundReport]]:
    """The same rounds in this process, over what each site's settings make of its data.

    Args:
        sites: each site's name, and its site.toml.
    """
    tables, base_folder = settings_for_site(settings), str(world.base_path())
    configs = {site: read(config) for site, config in sites.items()}
    owned = {site: settings_at_site(config, tables, base_folder) for site, config in configs.items()}
    base = load_base(next(iter(owned.values())))
    datasets = {
        site: pipeline.one_client(each, site, base.tokenizer).clients[site] for site, each in owned.items()
    }
    method = plugins.method(settings)
    local = LocalClients(
        datasets=datasets,
        algorithm=method.algorithm,
        transform=method.transform,
        tuning=settings.tuning,
        federation=settings.federation,
        micro_batch_tokens=memory.micro_batch(base),
        order_seed=settings.seed,
        min_batch=max(config.policy.min_batch for config in configs.values()),
        min_examples=max(config.policy.min_examples for config in configs.values()),
        cap_nats=released.CAP_NATS,
        ranks=_fewer_ranks(settings, configs),
    )
    simulation: Federation = Simulation(local=local, executor=Inline(base), stack_size=1)
    if settings.secure is not None:
        simulation = Summed(federation=simulation, ring_bits=settings.secure.ring_bits)
    adapter = lora.first(base.targets, settings.adapter.rank, settings.seed)
    yield from rounds(
        method,
        simulation,
        start(method, adapter),
        until=settings.federation.rounds,
        select=plugins.selection(settings).cohort,
        quorum=settings.federation.quorum,
        seed=settings.seed,
    )


def _fewer_ranks(settings: RunSettings, sites: Mapping[str, SiteSettings]) -> dict[str, int]:
    ranks = {site: rank_at_site(settings.adapter, site, own.policy.max_rank) for site, own in sites.items()}
    return {site: rank for site, rank in ranks.items() if rank < settings.adapter.rank}


@contextmanager
def one_thread() -> Iterator[None]:
    """Train on one thread, as the sites of a loopback federation do."""
    before = memory.threads()
    memory.use_threads(1)
    try:
        yield
    finally:
        memory.use_threads(before)


def compare(one: Tensors, other: Tensors) -> Figures:
    """How two adapters differ: `different` counts numbers whose bits are not the same.

    >>> a, b = {"x": np.array([1.0, 2.0], np.float32)}, {"x": np.array([1.0, 2.5], np.float32)}
    >>> compare(a, b)
    {'tensors': 1, 'numbers': 2, 'different': 1, 'largest': 0.5}
    """
    if {name: t.shape for name, t in one.items()} != {name: t.shape for name, t in other.items()}:
        raise RuntimeError("the two adapters have other tensors")
    pairs: list[tuple[Any, Any]] = [(one[name], other[name]) for name in sorted(one)]
    return {
        "tensors": len(pairs),
        "numbers": sum(a.size for a, _ in pairs),
        "different": sum(int((a.view(np.uint32) != b.view(np.uint32)).sum()) for a, b in pairs),
        "largest": max(float(np.abs(a - b).max()) for a, b in pairs),
    }


def tables(figures: Figures) -> list[Table]:
    rows = [
        (
            what,
            str(one["tensors"]),
            common.count(one["numbers"]),
            common.count(one["different"]),
            f"{one['largest']:g}",
        )
        for what, one in figures["compared"].items()
    ]
    title = (
        f"In process and over silos: {figures['rounds']} rounds of {figures['sites']} sites,"
        f" {figures['steps_a_visit']} steps a visit"
    )
    columns = ("", "tensors", "numbers", "with other bits", "largest difference")
    return [Table(title, columns, rows)]


if __name__ == "__main__":
    sys.exit(main())
