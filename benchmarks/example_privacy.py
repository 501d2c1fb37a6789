"""What the privacy of single examples costs: time and memory of tuning, and what is learnt at an epsilon.

    python -m benchmarks.example_privacy cost [--on world dolly smollm2]
    python -m benchmarks.example_privacy utility --keep runs/example-privacy [--on world] [--seeds 3]
    python -m benchmarks.example_privacy utility --keep runs/example-privacy --table    # what is there

`cost` tunes the same examples in the same steps with and without [privacy.examples], each side in a process
of its own; the sides take turns, and the ratio is the median over the turns. `utility` trains three sites,
each on its own part of the data, at several epsilons with the noise that the accountant asks for; each
learning rate of `--rates` and each clipping norm of `--norms` is tried with the first seed, and the best is
trained with the others. Choosing them by the held-out loss is not accounted. A training that is kept in the
folder is not made again, so the grid can be made in parts.
"""

from __future__ import annotations

import math
import shutil
import sys
import tempfile
from argparse import Namespace
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import fmean, median
from time import perf_counter
from typing import Any

import numpy as np

from benchmarks import common, setting
from benchmarks.common import Figures, Missing, Table
from benchmarks.sides import Make, sides
from benchmarks.work import Measured, Work, device_bytes
from shepherd import plugins
from shepherd.core import Adapter, Broadcast, seed_for
from shepherd.core.spending import Poisson
from shepherd.data import pipeline
from shepherd.data.dataset import TokenisedData
from shepherd.errors import Diverged, QuorumNotMet
from shepherd.io.phrases import epsilon_text
from shepherd.machine import malloc, memory
from shepherd.model import base as bases
from shepherd.model import meta_shapes
from shepherd.overrides import overridden
from shepherd.privacy import accountant, example_level
from shepherd.run.opening import open_run
from shepherd.settings import PrivacyTable, RunSettings
from shepherd.training import tune
from shepherd.training.example_privacy import ExamplePrivacy
from shepherd.training.tune import Visit

EPSILONS = (1.0, 3.0, 8.0, math.inf)
SIDES = {"plain": False, "private": True}
THREE_SITES = "split={by='iid', clients=3}"
MAX_RATIO = 1.5
"""The aim: tuning takes at most this many times as long."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure one of the two, and print its table."""
    made = common.parser(__doc__)
    made.add_argument("what", choices=("cost", "utility"))
    made.add_argument("--on", nargs="+", default=[], choices=setting.SETTINGS, help="settings (default: all)")
    made.add_argument("--repeats", type=int, default=3, help="cost: turns of each side (default 3)")
    made.add_argument("--batch", type=int, default=32, help="cost: examples of a step (default 32)")
    made.add_argument("--keep", type=Path, metavar="FOLDER", help="utility: folder of the scores")
    made.add_argument("--rates", nargs="+", type=float, default=(1.0, 4.0), help="multiples of the rate")
    made.add_argument("--norms", nargs="+", type=float, default=(0.1, 1.0), help="clipping norms")
    made.add_argument("--seeds", type=int, default=3, help="seeds of the best cell (default 3)")
    made.add_argument("--more", nargs="+", default=[], metavar="KEY=VALUE", help="changes of every run")
    made.add_argument("--table", action="store_true", help="utility: train nothing")
    options = made.parse_args(arguments)
    if options.what == "utility" and options.keep is None:
        made.error("utility needs --keep FOLDER")
    return common.run(
        options, *((cost, cost_tables) if options.what == "cost" else (utility, utility_tables))
    )


# time and memory -------------------------------------------------------------------------------------------


def cost(options: Namespace) -> Figures:
    """Seconds and memory of both sides, on each base that is on this machine."""
    if options.quick:
        options.repeats, options.batch, options.on = 1, 4, options.on or ["world"]
    found = []
    for on in options.on or setting.SETTINGS:
        try:
            found.append(_cost_on(on, options))
        except Missing as missing:
            print(f"{on} is skipped: {missing} is missing")
    return {"bases": found, "passed": all(each["ratio"] <= MAX_RATIO for each in found) or options.quick}


def _cost_on(on: str, options: Namespace) -> Figures:
    settings = setting.placed(
        setting.settings(
            on,
            {
                "seed": options.seed,
                "data": {"limit": 40 if options.quick else 200},
                "tuning": {"max_steps": 2, "batch_size": options.batch, "epochs": None},
                "machine": {"threads": options.threads or 1},
            },
        )
    )
    ready = pipeline.prepare(settings, bases.load_tokenizer(settings.model))
    shapes = meta_shapes.shapes(settings.model.base, settings.adapter)
    rng = np.random.default_rng(0)
    start = {name: rng.normal(0, 0.02, shape) * (".lora_A." in name) for name, shape in shapes.items()}
    largest = max(ready.clients, key=lambda name: len(ready.clients[name]))
    work = Work(settings=settings, clients={largest: ready.clients[largest]}, start=Adapter(start))
    makes: dict[str, Make] = {f"engine {name}": partial(_side, private=on) for name, on in SIDES.items()}
    with sides(makes, work) as turns:
        taken: dict[str, list[Measured]] = {name: [] for name in turns}
        for name in [*turns] * (options.repeats + 1):
            taken[name].append(turns[name](1))
    plain, private = taken.values()
    # the first turn warms up
    ratios = [b.seconds / a.seconds for a, b in zip(plain[1:], private[1:], strict=True)]
    return {
        "base": Path(settings.model.base).name,
        "on": on,
        "dtype": plain[0].dtype,
        "batch": options.batch,
        "tokens": work.tokens,
        **{
            f"{name}_tokens_per_second": work.tokens / median(each.seconds for each in side[1:])
            for name, side in zip(SIDES, (plain, private), strict=True)
        },
        **{
            f"{name}_peak_bytes": max(each.peak_bytes for each in side)
            for name, side in zip(SIDES, (plain, private), strict=True)
        },
        "ratios": ratios,
        "ratio": median(ratios),
    }


def _side(work: Work, *, private: bool) -> Callable[[Work], Measured]:
    malloc.keep_pages()
    memory.use_threads(work.settings.machine.threads)
    base = bases.load(work.settings.model, work.settings.adapter, device=work.settings.machine.device)
    algorithm, tuning = plugins.algorithm(work.settings.algorithm), work.settings.tuning

    def visit_all(asked: Work) -> Measured:
        visits = [
            Visit(
                client=name,
                data=data,
                batches=asked.steps(name),
                seed=seed_for(0, name),
                expected_batch=tuning.batch_size,
            )
            for name, data in asked.clients.items()
        ]
        job = tune.Job(
            broadcast=Broadcast(round=0, adapter=asked.start, seed=0),
            algorithm=algorithm,
            visits=visits,
            tuning=tuning,
            learning_rate=tuning.learning_rate,
            micro_batch_tokens=memory.micro_batch(base),
            privacy=ExamplePrivacy(norm=1.0, noise=1.0) if private else None,
        )
        began = perf_counter()
        tuned = tune.tune(base, job)
        return Measured(
            seconds=perf_counter() - began,
            adapter=asked.start,
            loss=tuned[0].report.loss,
            peak_bytes=device_bytes(base.device),
            dtype=str(base.dtype).removeprefix("torch."),
            micro_batch_tokens=job.micro_batch_tokens,
        )

    return visit_all


def cost_tables(figures: Figures) -> list[Table]:
    """The cost as it is printed."""
    columns = ["base", "examples a step", "plain tokens/s", "private tokens/s", "times as long", "MB", "MB"]
    rows = [
        [
            f"{row['base']} ({row['dtype']})",
            str(row["batch"]),
            common.count(row["plain_tokens_per_second"]),
            common.count(row["private_tokens_per_second"]),
            f"{row['ratio']:.2f} ({min(row['ratios']):.2f} to {max(row['ratios']):.2f})",
            f"{row['plain_peak_bytes'] / 1e6:,.0f}",
            f"{row['private_peak_bytes'] / 1e6:,.0f}",
        ]
        for row in figures["bases"]
    ]
    note = "memory: the peak of the process, plain and private; times as long: the median turn, and all turns"
    return [Table("tuning with and without the privacy of single examples", columns, rows, [note])]


# utility ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One training."""

    epsilon: float
    rate: float
    norm: float
    seed: int

    @property
    def file(self) -> str:
        """Name of the file that keeps its scores."""
        return f"epsilon-{self.epsilon:g}-rate-{self.rate:g}-norm-{self.norm:g}-{self.seed}.json"


def utility(options: Namespace) -> Figures:
    """The scores at each epsilon, made or read."""
    rows = []
    for on in options.on or ["world"]:
        grid = Grid.of(on, options)
        for epsilon in EPSILONS:
            norms = options.norms if epsilon < math.inf else options.norms[:1]  # nothing is clipped there
            cells = [
                Cell(epsilon=epsilon, rate=rate, norm=norm, seed=0)
                for rate in options.rates
                for norm in norms
            ]
            tried = {cell: found for cell in cells if (found := grid.scores(cell)) is not None}
            if not tried:
                continue
            best = min(tried, key=lambda cell: tried[cell]["loss"])
            made = [
                grid.scores(Cell(epsilon=epsilon, rate=best.rate, norm=best.norm, seed=seed))
                for seed in range(options.seeds)
            ]
            rows.append({"on": on, "epsilon": epsilon, "rate": best.rate, "norm": best.norm, "made": made})
    return {"rows": [{**row, "made": [each for each in row["made"] if each]} for row in rows]}


class Grid:
    """The cells of one setting: makes them, keeps them, reads them."""

    def __init__(self, asked: RunSettings, folder: Path, train: bool) -> None:
        self.delta = asked.privacy.delta  # which a run without noise may not have
        self.asked = asked.model_copy(update={"privacy": PrivacyTable()})
        self.folder, self.train = folder, train
        self.prepared: TokenisedData | None = None

    @classmethod
    def of(cls, on: str, options: Namespace) -> Grid:
        """Three sites of a setting, all of which are asked in every round."""
        changes = [
            THREE_SITES,
            "selection.share=1.0",
            "federation.weights=equal",
            "evaluation.examples=400",
            "evaluation.answers=200",
            "data.seed=0",
            *options.more,
        ]
        if options.quick:
            quick = ("federation.rounds=1", "tuning.max_steps=2", "data.limit=60", "evaluation.answers=4")
            changes += quick
        asked = overridden(setting.settings(on), changes)
        silent = [f"evaluation.every={asked.federation.rounds}"]
        folder = options.keep / "-".join([on, *options.more])
        return cls(overridden(asked, silent), folder, not options.table)

    def scores(self, cell: Cell) -> dict[str, Any] | None:
        """The scores of a cell; trains it if it is not kept. None if it may not be trained, or diverged."""
        make = partial(self._made, cell) if self.train else None
        return common.kept(self.folder / cell.file, make, f"training {cell.file.removesuffix('.json')}")

    def _made(self, cell: Cell) -> dict[str, Any]:
        scratch = Path(tempfile.mkdtemp(prefix="example-privacy-"))
        rate = cell.rate * self.asked.tuning.learning_rate
        changes = [f"seed={cell.seed}", f"tuning.learning_rate={rate!r}", f"output={scratch / 'run'}"]
        began, noise = perf_counter(), None
        try:
            if self.prepared is None:
                placed = setting.placed(self.asked)
                self.prepared = pipeline.prepare(placed, bases.load_tokenizer(placed.model))
            if cell.epsilon < math.inf:
                noise = self.noise(cell.epsilon)
                changes.append(f"privacy.examples={{norm={cell.norm!r}, noise={noise!r}}}")
                changes += [] if self.delta is None else [f"privacy.delta={self.delta!r}"]
            with open_run(overridden(self.asked, changes), self.prepared) as run:
                rows = [row for _, row in run.rounds()]
                answers = run.finish()["answers"]
            return {
                "loss": rows[-1]["heldout"]["loss"],
                "right": fmean(after for _, after in answers.values()) if answers else None,
                "spent": rows[-1].get("example_privacy"),
                "noise": noise,
                "seconds": perf_counter() - began,
            }
        except (Diverged, QuorumNotMet) as error:  # the rate was too large
            return {"failed": str(error)}
        finally:
            shutil.rmtree(scratch, ignore_errors=True)

    def noise(self, epsilon: float) -> float:
        """The noise multiplier with which the site with the fewest examples spends this epsilon."""
        assert self.prepared is not None
        sizes, tuning = [len(data) for data in self.prepared.clients.values()], self.asked.tuning
        few, delta = min(sizes), example_level.delta_of(self.delta, max(sizes), "a site")
        sampling = Poisson(chance=example_level.chance(few, tuning.batch_size))
        steps = self.asked.federation.rounds * example_level.steps(tuning, few)
        return accountant.noise_for(epsilon, delta, sampling, steps)


def utility_tables(figures: Figures) -> list[Table]:
    """The scores as they are printed."""
    columns = ["epsilon", "spent", "noise", "rate", "norm", "held-out loss", "right %", "seeds", "s"]
    tables = []
    for on in dict.fromkeys(row["on"] for row in figures["rows"]):
        rows = [
            [
                f"{row['epsilon']:g}",
                epsilon_text(row["made"][0]["spent"]["epsilon"]) if row["made"][0]["spent"] else "",
                f"{row['made'][0]['noise']:.3f}" if row["made"][0]["noise"] else "",
                f"{row['rate']:g}x",
                f"{row['norm']:g}" if row["made"][0]["noise"] else "",
                _spread([each["loss"] for each in row["made"]], 1, 3),
                _spread([each["right"] for each in row["made"]], 100, 1),
                str(len(row["made"])),
                f"{median(each['seconds'] for each in row['made']):.0f}",
            ]
            for row in figures["rows"]
            if row["on"] == on
        ]
        note = "mean over the seeds, and the least and the most of them"
        tables.append(Table(f"three sites on {on}, by epsilon of each example", columns, rows, [note]))
    return tables


def _spread(values: Sequence[float | None], scale: float, digits: int) -> str:
    known = [value * scale for value in values if value is not None]
    if not known:
        return ""
    return f"{fmean(known):.{digits}f} [{min(known):.{digits}f}, {max(known):.{digits}f}]"


if __name__ == "__main__":
    sys.exit(main())
