"""The matched grid: every method at the same examples and rounds, each with its own best learning rate.

    python -m benchmarks.methods --keep runs/methods             # the embedded world, all methods, 3 seeds
    python -m benchmarks.methods --keep runs/methods --on dolly --methods fedavg ffa_lora
    python -m benchmarks.methods --keep runs/methods --more tuning.batch_size=4 tuning.max_steps=48
    python -m benchmarks.methods --keep runs/methods --table     # only print what is there already

Every arm trains on as many examples: the federated ones in the same rounds, cohorts and visits, central
tuning one step after another with the schedule of the rounds over its steps. Each learning rate of `--rates`
is tried with the first seed and judged by the loss on one half of the held-out examples; the best one is
trained with the other seeds, too, and the table is of the other half. A training that is kept in the folder
is not made again, so the grid can be made in parts. Intervals are 95%, over questions and seeds
(`shepherd.evaluate.statistics`).
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from argparse import ArgumentParser, Namespace
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from benchmarks import common, setting
from benchmarks.common import Figures, Table
from shepherd.algorithms import fedavg
from shepherd.config import PartTable
from shepherd.core import Adapter, Broadcast, Failure, chain, seed_for
from shepherd.data import dataset
from shepherd.data.dataset import TokenisedData
from shepherd.data.tokens import Tokens
from shepherd.errors import Diverged, QuorumNotMet
from shepherd.evaluate import draws, loss, statistics
from shepherd.evaluate.metric import metrics, scores
from shepherd.federation.clients import LocalClients
from shepherd.federation.simulation import Simulation
from shepherd.machine.executors import Inline
from shepherd.model import lora
from shepherd.model.answer import answers, prompt_ids
from shepherd.model.base import Base
from shepherd.overrides import overridden
from shepherd.run.opening import open_run
from shepherd.run.run import Run
from shepherd.settings import FederationTable, RunSettings, TuningTable
from shepherd.training import score, tune

CENTRAL = "central"
WHOLE = "server={name='sgd'}"  # a step of 1 at the server, whatever the setting says
TWO = "server={name='sgd', learning_rate=2.0}"
UNEQUAL = ("adapter.rank=32", "adapter.alpha=64", "adapter.ranks=[4, 8, 16, 32]")
SGD = ("tuning.optimiser.name=sgd", "federation.weights=equal", "tuning.learning_rate=0.4")
METHODS: Mapping[str, tuple[str, ...]] = {
    CENTRAL: (),
    "fedavg": (),
    "fedavg, server rate 1": (WHOLE,),
    "fedavg, server rate 2": (TWO,),
    "fedprox": ("algorithm.name=fedprox",),
    "ffa_lora": ("algorithm.name=ffa_lora",),
    "ffa_lora, fedsvd": ("algorithm.name=ffa_lora", "server={name='fedsvd'}"),
    "rolora": ("algorithm.name=rolora",),
    "fedrot": ("transforms=[{name='fedrot'}]",),
    "fed_sb": ("algorithm.name=fed_sb",),
    "ridge": ("aggregation.name=ridge", WHOLE),
    "product": ("aggregation.name=product", WHOLE),
    "product, step 2": ("aggregation.name=product", "aggregation.step=2", WHOLE),
    "product, balanced": ("aggregation.name=product", "aggregation.split=balanced", WHOLE),
    "florist": ("aggregation.name=florist", WHOLE),
    "side": ("aggregation.name=side", WHOLE),
    "side, largest": ("aggregation.name=side", "aggregation.means=false", WHOLE),
    "flora": ("aggregation.name=flora", WHOLE),
    "local_adapter": ("algorithm.name=local_adapter",),
    "fedavgm": ("server={name='fedavgm'}",),
    "fedadam": ("server={name='fedadam'}",),
    "fedyogi": ("server={name='fedyogi'}",),
    "fedadagrad": ("server={name='fedadagrad'}",),
    "nesterov": ("server={name='nesterov'}",),
    "fedavg by SGD": (*SGD, WHOLE),
    "scaffold": (*SGD, "algorithm.name=scaffold", WHOLE),
    "fednova": (*SGD, "algorithm.name=fednova", WHOLE),
    "product, ranks 4 to 32": (*UNEQUAL, "aggregation.name=product", WHOLE),
    "zero_padding, ranks 4 to 32": (*UNEQUAL, "aggregation.name=zero_padding", WHOLE),
    "fedavg, all at rank 4": ("adapter.rank=4", "adapter.alpha=8", WHOLE),
}
"""Name -> what it changes in the setting's run file."""
RATES = (0.5, 1.0, 2.0)
"""Learning rates, as multiples of the setting's, or for SGD of 0.4."""
QUESTIONS = 800
"""Held-out examples that are answered and scored, at most."""
SETTINGS: Mapping[str, tuple[str, ...]] = {
    "world": (),
    "dolly": ("federation.rounds=20", "selection.share=0.6", "tuning.round_schedule=linear"),
    "dolly-100": (
        "federation.rounds=20",
        "selection.share=0.1",
        "tuning.round_schedule=linear",
        "split.by=shards",
        "split.clients=100",
        "split.shards_per_client=2",
    ),
    "smollm2": ("selection.share=0.6",),
}
"""Setting -> changes of it; all clients hold a part of the same examples."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One training: a method with a learning rate and a seed."""

    method: str
    rate: float
    seed: int

    @property
    def file(self) -> str:
        """Name of the file that keeps its scores."""
        plain = "".join(c if c.isalnum() else "-" for c in self.method)
        return f"{plain}-{self.rate:g}-{self.seed}.json"


def main(arguments: Sequence[str] | None = None) -> int:
    """Make what is missing of the grid, and print its table."""
    made = common.parser(__doc__)
    add_options(made, METHODS, RATES)
    return common.run(made.parse_args(arguments), measure, tables)


def add_options(made: ArgumentParser, named: Mapping[str, tuple[str, ...]], rates: Sequence[float]) -> None:
    """The options of a grid of these methods."""
    made.add_argument("--keep", type=Path, required=True, metavar="FOLDER", help="folder of the scores")
    made.add_argument("--on", choices=sorted(SETTINGS), default="world", help="setting (default: world)")
    made.add_argument("--methods", nargs="+", choices=sorted(named), default=list(named), metavar="NAME")
    made.add_argument("--rates", nargs="+", type=float, default=rates, help="multiples of the rate")
    made.add_argument("--more", nargs="+", default=[], metavar="KEY=VALUE", help="changes of every method")
    made.add_argument("--seeds", type=int, default=3, help="seeds of the best rate (default 3)")
    made.add_argument("--table", action="store_true", help="train nothing")


def measure(options: Namespace) -> Figures:
    """The scores of every cell, made or read."""
    grid = Grid.of(options, METHODS)
    best = grid.best(options.methods, options.rates, options.seeds)
    return {"on": options.on, "methods": grid.compared(best, options.seeds, "fedavg")}


class Grid:
    """The cells of one setting: makes them, keeps them, reads them."""

    def __init__(
        self, asked: RunSettings, folder: Path, train: bool, changes: Mapping[str, tuple[str, ...]]
    ) -> None:
        self.asked, self.folder, self.train, self.changes = asked, folder, train, changes
        self.prepared: TokenisedData | None = None

    @classmethod
    def of(cls, options: Namespace, changes: Mapping[str, tuple[str, ...]], *more: str) -> Grid:
        """The grid that the options ask for.

        Args:
            changes: what each method changes in the setting.
            more: changes of every method.
        """
        named = options.on.removesuffix("-100")
        asked = overridden(setting.settings(named), (*SETTINGS[options.on], *options.more, "data.seed=0"))
        silent = ["evaluation.answers=0", "evaluation.examples=8"]
        silent.append(f"evaluation.every={asked.federation.rounds}")
        if options.quick:
            silent += ["federation.rounds=1", "tuning.max_steps=1", "data.limit=60", "data.holdout=0.2"]
        folder = options.keep / "-".join([options.on, *options.more])
        return cls(overridden(asked, [*silent, *more]), folder, not options.table, changes)

    def best(self, names: Sequence[str], rates: Sequence[float], seeds: int) -> dict[str, float]:
        """The best rate of each method by the first seed, once it is trained with the others, too."""
        best: dict[str, float] = {}
        for name in names:
            tried = {rate: self.scores(Cell(method=name, rate=rate, seed=0)) for rate in rates}
            known = {rate: found["choice"] for rate, found in tried.items() if found is not None}
            if known:
                best[name] = min(known, key=lambda rate: known[rate])
        for number in range(1, seeds):  # seed by seed, so that an early end leaves whole columns
            for name, rate in best.items():
                self.scores(Cell(method=name, rate=rate, seed=number))
        return best

    def scores(self, cell: Cell) -> dict[str, Any] | None:
        """The scores of a cell; trains it if it is not kept. None if it may not be trained, or diverged."""
        make = partial(self._made, cell) if self.train else None
        doing = f"training {cell.method} at {cell.rate:g} times the rate, seed {cell.seed}"
        return common.kept(self.folder / cell.file, make, doing)

    def _made(self, cell: Cell) -> dict[str, Any]:
        asked = overridden(self.asked, self.changes[cell.method])
        rate = cell.rate * asked.tuning.learning_rate
        scratch = Path(tempfile.mkdtemp(prefix="methods-"))
        began = perf_counter()
        try:
            changes = (f"seed={cell.seed}", f"tuning.learning_rate={rate!r}", f"output={scratch / 'run'}")
            settings = overridden(asked, changes)
            with open_run(settings, self.prepared) as run:
                self.prepared = run.prepared
                adapter, trained = (
                    _central(run, self.asked.tuning) if cell.method == CENTRAL else _federated(run)
                )
                seconds = perf_counter() - began
                return {**trained, "seconds": seconds, **scored(run, adapter)}
        except (Diverged, QuorumNotMet) as error:  # the rate was too large
            return {"failed": str(error)}
        finally:
            shutil.rmtree(scratch, ignore_errors=True)

    def compared(self, best: Mapping[str, float], seeds: int, plain: str) -> list[dict[str, Any]]:
        """A row for each method, on the half of the questions that no rate was chosen by.

        Args:
            plain: the method that the others are compared with.
        """
        columns = {
            method: [
                found
                for number in range(seeds)
                if (found := self.scores(Cell(method=method, rate=rate, seed=number))) is not None
            ]
            for method, rate in best.items()
        }
        whole = {method: found for method, found in columns.items() if len(found) == seeds}
        if not whole:
            return []
        some = next(iter(whole.values()))[0]
        kept = draws.draws([some["categories"][i] for i in some["report"]], seeds=seeds)
        against = whole.get(plain)
        return [
            {
                "method": method,
                "rate": best[method],
                **summary(found, kept),
                **({"against": _against(found, against, kept)} if against and method != plain else {}),
                **({"of_central": _of_central(found, whole[CENTRAL], kept)} if CENTRAL in whole else {}),
            }
            for method, found in whole.items()
        ]


def _federated(run: Run) -> tuple[Adapter, dict[str, Any]]:
    rows = [row for _, row in run.rounds()]
    return run.state.adapter, {
        "examples": sum(row["examples"] for row in rows),
        "bytes": sum(row["bytes_up"] + row["bytes_down"] for row in rows),
        "bytes_up": [row["bytes_up"] for row in rows],
        "heldout": [row.get("heldout", {}).get("loss") for row in rows],
        "gap": [row.get("gap") for row in rows],
    }


def _central(run: Run, named: TuningTable) -> tuple[Adapter, dict[str, Any]]:
    """Tuning on all clients' data, one step after another, on as many examples as the rounds see.

    Args:
        named: the tuning that the setting names, whose rate the run's is a multiple of.
    """
    asked = run.settings
    visits = asked.federation.rounds * run.selection.size(len(run.prepared.clients))
    assert asked.tuning.max_steps is not None, "the grid's settings give visits by steps"
    steps = visits * asked.tuning.max_steps
    own = asked.compare  # its rate is a share of the tried one as there
    batch = own.batch_size or asked.tuning.batch_size
    rate = asked.tuning.learning_rate * (own.learning_rate or named.learning_rate) / named.learning_rate
    tuning = asked.tuning.model_copy(
        update={
            "max_steps": -(-steps * asked.tuning.batch_size // batch),
            "batch_size": batch,
            "learning_rate": rate,
            "schedule": asked.tuning.round_schedule,
            "round_schedule": "constant",
        }
    )
    local = LocalClients(
        datasets={CENTRAL: Tokens.pooled(list(run.prepared.clients.values()))},
        algorithm=fedavg.ALGORITHM,
        transform=chain(),
        tuning=tuning,
        federation=FederationTable(rounds=1),
        micro_batch_tokens=run.plan.micro_batch_tokens,
        order_seed=asked.seed,
        training=run.training,
    )
    first = lora.first(run.base.targets, asked.adapter.rank, asked.seed)
    simulation = Simulation(local=local, executor=Inline(run.base), stack_size=1)
    broadcast = Broadcast(round=0, adapter=first, seed=seed_for(asked.seed, "arms"))
    (update,) = simulation.run(broadcast, [CENTRAL])
    if isinstance(update, Failure):
        raise Diverged(update.reason)
    adapter = first.plus(update.delta)
    return adapter, {"examples": (tuning.max_steps or 0) * batch, "bytes": 0, "gap": []}


def scored(run: Run, adapter: Adapter) -> dict[str, Any]:
    """Loss and answers of each held-out question; one half chooses the rate, the other is reported."""
    base, prepared = run.base, run.prepared
    named = dataset.categories(prepared)
    places = loss.stratified_subset(named, QUESTIONS).tolist()
    held = prepared.heldout.take(places)
    sums = score.losses(base, [adapter], held, micro_batch=run.plan.micro_batch_tokens)[0]
    counts = tune.predictions(held)
    categories = [named[place] for place in places]
    choice = [
        i for n in sorted(set(categories)) for i in [j for j, c in enumerate(categories) if c == n][::2]
    ]
    report = sorted(set(range(len(places))) - set(choice))
    mixes = prepared.category_counts
    reported = loss.summarise(sums[report], counts[report], [categories[i] for i in report], mixes)
    return {
        "categories": categories,
        "report": report,
        "losses": (sums / counts).tolist(),
        "tokens": counts.tolist(),
        "choice": loss.summarise(sums[choice], counts[choice], [categories[i] for i in choice], {}).loss,
        "worst_client": max(reported.client.values()),
        "right": _right(base, run.settings, prepared, adapter, places, report),
    }


def _right(
    base: Base,
    settings: RunSettings,
    prepared: TokenisedData,
    adapter: Adapter,
    places: Sequence[int],
    report: Sequence[int],
) -> list[float] | None:
    """Whether each reported question is answered right; None if the data have no checkers."""
    examples = [prepared.heldout_examples[places[i]] for i in report]
    if any(example.check is None for example in examples):
        return None
    prompts = [prompt_ids(base, settings.data, example.turns[:-1]) for example in examples]
    longest = settings.evaluation.max_new_tokens
    (found,) = answers(base, settings.data, [adapter], prompts, max_new_tokens=longest)
    (right,) = metrics([PartTable(name="right")])
    return [scores([right], a.text, e)["right"] or 0.0 for a, e in zip(found, examples, strict=True)]


def _values(found: Sequence[Mapping[str, Any]], what: str) -> np.ndarray:
    if what == "right":
        return np.array([each["right"] for each in found])
    return np.array([[each["losses"][i] for i in each["report"]] for each in found])


def _tokens(found: Sequence[Mapping[str, Any]]) -> np.ndarray:
    return np.array([found[0]["tokens"][i] for i in found[0]["report"]], dtype=float)


def summary(found: Sequence[Mapping[str, Any]], kept: draws.Draws) -> dict[str, Any]:
    row: dict[str, Any] = {
        "loss": statistics.score(_values(found, "loss"), kept, _tokens(found)).row(),
        "worst_client": float(np.mean([each["worst_client"] for each in found])),
        "examples": found[0]["examples"],
        "bytes": found[0]["bytes"],
        "seconds": float(np.median([each["seconds"] for each in found])),
        "gap": found[0]["gap"][-1] if found[0]["gap"] else None,
    }
    if found[0]["right"] is not None:
        row["right"] = statistics.score(_values(found, "right"), kept).row()
    return row


def _against(
    found: Sequence[Mapping[str, Any]], plain: Sequence[Mapping[str, Any]], kept: draws.Draws
) -> dict[str, Any]:
    """The difference to plain averaging, paired by question and seed."""
    apart = statistics.difference(_values(found, "loss"), _values(plain, "loss"), kept, _tokens(found))
    return {"loss": apart.difference.row(), "p": apart.p}


def _of_central(
    found: Sequence[Mapping[str, Any]], central: Sequence[Mapping[str, Any]], kept: draws.Draws
) -> dict[str, Any]:
    what = "loss" if found[0]["right"] is None else "right"
    weights = _tokens(found) if what == "loss" else None
    return statistics.relative(_values(found, what), _values(central, what), kept, weights).row()


def tables(figures: Figures) -> list[Table]:
    """The grid as it is printed."""
    columns = [
        "method",
        "rate",
        "loss",
        "right %",
        "of central",
        "against fedavg",
        "worst client",
        "gap",
        "MB",
        "s",
    ]
    rows = [
        [
            row["method"],
            f"{row['rate']:g}x",
            interval(row["loss"]),
            interval(row.get("right"), 100, 1),
            interval(row.get("of_central")),
            interval(row.get("against", {}).get("loss")),
            f"{row['worst_client']:.3f}",
            "" if row["gap"] is None else f"{row['gap']:.3f}",
            f"{row['bytes'] / 1e6:.1f}",
            f"{row['seconds']:.0f}",
        ]
        for row in figures["methods"]
    ]
    notes = [
        "of central: right answers, or loss where nothing can be checked, as a ratio to central tuning's"
    ]
    return [Table(f"methods at equal examples on {figures['on']}", columns, rows, notes)]


_ENDS = ("value", "low", "high")


def interval(found: Mapping[str, float | None] | None, scale: float = 1.0, digits: int = 3) -> str:
    if found is None:
        return ""
    value, low, high = ("?" if (n := found[key]) is None else f"{n * scale:.{digits}f}" for key in _ENDS)
    return f"{value} [{low}, {high}]"


if __name__ == "__main__":
    sys.exit(main())
