"""Utility against epsilon: client-level noise on many simulated clients.

    python -m benchmarks.client_privacy --keep runs/client-privacy    # the world, 100 and 1,000 clients
    python -m benchmarks.client_privacy --keep runs/client-privacy --on dolly --clients 100 --epsilons 8 inf
    python -m benchmarks.client_privacy --keep runs/client-privacy --noise-cohort 0 5000
    python -m benchmarks.client_privacy --keep runs/client-privacy --table    # only print what is there

Each arm trains as many rounds with Poisson cohorts of its own, and the noise multiplier that the accountant
gives for its epsilon; "inf" is the same clip without noise, and "plain" neither. Noise is either for
the clients that there are, or that of a larger cohort, as pfl-research scales it: M clients a round of a
population of M / share are accounted for, m are simulated, and the noise on their sum is m / M of what M
would get, so that the released mean has the noise of M. Such a row says what so many clients could have, and
claims nothing of the clients that were simulated. A training that is kept in the folder is not made again,
so the table can be made in parts. Intervals are 95%, over questions and seeds
(`shepherd.evaluate.statistics`).
"""

from __future__ import annotations

import math
import shutil
import sys
import tempfile
from argparse import Namespace
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from time import perf_counter
from typing import Any

from benchmarks import common, methods, setting
from benchmarks.common import Figures, Table
from shepherd.core import Mechanism, Poisson, Transform
from shepherd.data.dataset import TokenisedData
from shepherd.errors import Diverged, QuorumNotMet
from shepherd.evaluate import draws
from shepherd.overrides import overridden
from shepherd.privacy import accountant
from shepherd.run.opening import open_run
from shepherd.settings import RunSettings
from shepherd.transforms import clip, gaussian, gaussian_adaptive

PLAIN = "plain"
EPSILONS = ("1", "3", "8", "inf", PLAIN)
SHARE = 0.1
NO_NOISE = 1e-9
"""A multiplier that changes nothing, for the clip that follows the norms, alone."""
SETTINGS = {
    "world": ("split.by=shards", "split.shards_per_client=2"),
    "dolly": ("split.by=shards", "split.shards_per_client=2", "federation.rounds=20"),
}
"""Setting -> changes of it. The clients of both hold two kinds of examples each."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One training."""

    clients: int
    epsilon: str
    noise_cohort: int
    """Clients of a round whose noise is simulated; 0 for those that there are."""
    seed: int

    @property
    def file(self) -> str:
        """Name of the file that keeps its scores."""
        scaled = f"-of-{self.noise_cohort}" if self.is_noisy and self.noise_cohort else ""
        return f"{self.clients}-{self.epsilon}{scaled}-{self.seed}.json"

    @property
    def is_noisy(self) -> bool:
        """Whether its epsilon is finite."""
        return self.epsilon not in (PLAIN, "inf")


@dataclass(frozen=True, slots=True, kw_only=True)
class Noise:
    """What is accounted for, and how much of its noise the simulated cohort gets."""

    multiplier: float
    delta: float
    population: int
    scale: float
    """Simulated clients of a round over those whose noise it has; 1 or less."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Make what is missing of the table, and print it."""
    made = common.parser(__doc__)
    made.add_argument("--keep", type=Path, required=True, metavar="FOLDER", help="folder of the scores")
    made.add_argument("--on", choices=sorted(SETTINGS), default="world", help="setting (default: world)")
    made.add_argument("--clients", nargs="+", type=int, default=[100, 1000], metavar="N")
    made.add_argument("--epsilons", nargs="+", choices=EPSILONS, default=list(EPSILONS), metavar="EPSILON")
    made.add_argument(
        "--noise-cohort", nargs="+", type=int, default=[0, 5000], metavar="M", help="0: the cohort itself"
    )
    made.add_argument("--share", type=float, default=SHARE, help=f"chance of a client (default {SHARE})")
    made.add_argument("--norm", type=float, default=0.0, help="fixed clip (default: it follows the median)")
    made.add_argument("--more", nargs="+", default=[], metavar="KEY=VALUE", help="changes of every arm")
    made.add_argument("--seeds", type=int, default=3, help="seeds of each arm (default 3)")
    made.add_argument("--table", action="store_true", help="train nothing")
    options = made.parse_args(arguments)
    return common.run(options, measure, tables)


def measure(options: Namespace) -> Figures:
    """The scores of every arm, made or read."""
    grid = Grid.of(options)
    arms = list(grid.arms())
    for seed in range(options.seeds):  # seed by seed, so that an early end leaves whole columns
        for arm in arms:
            grid.scores(replace(arm, seed=seed))
    return {"on": options.on, "share": grid.share, "rows": list(grid.rows(arms))}


@dataclass(slots=True, kw_only=True)
class Grid:
    """The trainings of one setting: makes them, keeps them, reads them."""

    asked: RunSettings
    folder: Path
    options: Namespace
    prepared: tuple[int, TokenisedData] | None = None
    """The data of the last training, by its number of clients."""

    @classmethod
    def of(cls, options: Namespace) -> Grid:
        """The grid that the options ask for."""
        changes = (*SETTINGS[options.on], "data.seed=0", "federation.weights=equal")
        poisson = ("selection.name=poisson", f"selection.share={options.share}")
        asked = overridden(setting.settings(options.on), (*changes, *poisson, *options.more))
        silent = ["evaluation.answers=0", "evaluation.examples=8"]
        silent.append(f"evaluation.every={asked.federation.rounds}")
        if options.quick:
            silent += ["federation.rounds=1", "tuning.max_steps=1", "data.limit=60", "data.holdout=0.2"]
            silent += ["evaluation.every=1"]
        norm = f"norm-{options.norm:g}" if options.norm else "adaptive"
        named = "-".join([options.on, f"share-{options.share:g}", norm, *options.more])
        return cls(asked=overridden(asked, silent), folder=options.keep / named, options=options)

    @property
    def share(self) -> float:
        """Chance of a client to be in a round."""
        return float(self.options.share)

    def arms(self) -> Iterator[Cell]:
        """The arms, each with seed 0; those without noise have no other cohort's."""
        for clients in self.options.clients:
            for epsilon in self.options.epsilons:
                arm = Cell(clients=clients, epsilon=epsilon, noise_cohort=0, seed=0)
                yield from (
                    (replace(arm, noise_cohort=cohort) for cohort in self.options.noise_cohort)
                    if arm.is_noisy
                    else (arm,)
                )

    def scores(self, cell: Cell) -> dict[str, Any] | None:
        """The scores of a cell; trains it if it is not kept. None if it may not be trained, or diverged."""
        make = partial(self._made, cell) if not self.options.table else None
        return common.kept(self.folder / cell.file, make, f"training {cell.file.removesuffix('.json')}")

    def _made(self, cell: Cell) -> dict[str, Any]:
        noise = self.noise(cell)
        scratch = Path(tempfile.mkdtemp(prefix="client-privacy-"))
        changes = [f"seed={cell.seed}", f"output={scratch / 'run'}", f"split.clients={cell.clients}"]
        if noise is not None:
            changes.append(f"privacy.delta={noise.delta!r}")
        kept = self.prepared[1] if self.prepared and self.prepared[0] == cell.clients else None
        given: dict[str, Any] = {} if cell.epsilon == PLAIN else {"transform": self._transform(noise, cell)}
        began = perf_counter()
        try:
            with open_run(overridden(self.asked, changes), kept, **given) as run:
                self.prepared = (cell.clients, run.prepared)
                for _ in run.rounds():
                    pass
                seconds = perf_counter() - began
                return {
                    "noise": None if noise is None else noise.multiplier,
                    "delta": None if noise is None else noise.delta,
                    "population": None if noise is None else noise.population,
                    "seconds": seconds,
                    "norm": self._last_norm(run.state.transforms),
                    # what `methods` summarises besides
                    "examples": 0,
                    "bytes": 0,
                    "gap": [],
                    **methods.scored(run, run.state.adapter),
                }
        except (Diverged, QuorumNotMet) as error:  # the noise was too large
            return {"failed": str(error)}
        finally:
            shutil.rmtree(scratch, ignore_errors=True)

    def _transform(self, noise: Noise | None, cell: Cell) -> Transform:
        """The clip, with this much noise; it is accounted for as the cohort whose noise it is."""
        norm = float(self.options.norm)
        if noise is None and norm:
            return clip.build(clip.Config(norm=norm))
        if noise is None:
            without = gaussian_adaptive.Config(noise=NO_NOISE, count_noise=NO_NOISE)
            return replace(gaussian_adaptive.build(without), mechanism=None)
        simulated = noise.multiplier * noise.scale
        if norm:
            made = gaussian.build(gaussian.Config(norm=norm, noise=simulated))
        else:
            cohort = self.share * cell.clients / noise.scale
            count = max(gaussian_adaptive.COUNT_SHARE * cohort, noise.multiplier) * noise.scale
            made = gaussian_adaptive.build(gaussian_adaptive.Config(noise=simulated, count_noise=count))
        assert made.mechanism is not None
        accounted = Mechanism(spent=gaussian.spent_with(noise.multiplier), verify=made.mechanism.verify)
        return replace(made, mechanism=accounted)

    @staticmethod
    def _last_norm(states: Any) -> float | None:
        return float(states["norm"]) if isinstance(states, dict) and "norm" in states else None

    def noise(self, cell: Cell) -> Noise | None:
        """The noise of a cell; None without any."""
        if not cell.is_noisy:
            return None
        simulated = self.share * cell.clients
        cohort = float(cell.noise_cohort or simulated)
        population = round(cohort / self.share)
        delta = accountant.default_delta(population)
        return Noise(
            multiplier=_multiplier(float(cell.epsilon), delta, self.share, self.asked.federation.rounds),
            delta=delta,
            population=population,
            scale=min(1.0, simulated / cohort),
        )

    def rows(self, arms: Sequence[Cell]) -> Iterator[dict[str, Any]]:
        """A row for each arm of which every seed is there."""
        for arm in arms:
            found = [self.scores(replace(arm, seed=seed)) for seed in range(self.options.seeds)]
            whole = [each for each in found if each is not None]
            if len(whole) < len(found):
                continue
            some = whole[0]
            kept = draws.draws([some["categories"][i] for i in some["report"]], seeds=len(whole))
            yield {
                "clients": arm.clients,
                "epsilon": arm.epsilon,
                "noise_cohort": arm.noise_cohort,
                **{key: some[key] for key in ("noise", "delta", "population", "norm")},
                **methods.summary(whole, kept),
            }


@cache
def _multiplier(epsilon: float, delta: float, share: float, rounds: int) -> float:
    return accountant.noise_for(epsilon, delta, Poisson(chance=share), rounds)


def tables(figures: Figures) -> list[Table]:
    """The arms as they are printed."""
    columns = ["clients", "epsilon", "delta", "noise of", "z", "last clip", "loss", "right %", "s"]
    rows = [
        [
            f"{row['clients']:,}",
            row["epsilon"],
            "" if row["delta"] is None else f"{row['delta']:.1g}",
            _cohort(row, figures["share"]),
            "" if row["noise"] is None else f"{row['noise']:.3g}",
            "" if row["norm"] is None or not math.isfinite(row["norm"]) else f"{row['norm']:.3g}",
            methods.interval(row["loss"]),
            methods.interval(row.get("right"), 100, 1),
            f"{row['seconds']:.0f}",
        ]
        for row in figures["rows"]
    ]
    notes = [
        "noise of: clients a round whose noise the released mean has. (scaled): it was simulated with fewer,"
        " so the row claims its epsilon for a population of that size and not for the clients simulated",
    ]
    return [Table(f"client-level privacy on {figures['on']}", columns, rows, notes)]


def _cohort(row: dict[str, Any], share: float) -> str:
    if row["noise"] is None:
        return "none"
    if not row["noise_cohort"]:
        return f"{share * row['clients']:,.0f}"
    return f"{row['noise_cohort']:,} (scaled)"


if __name__ == "__main__":
    sys.exit(main())
