"""Published values of differential privacy beside what the accountant gives.

    python -m benchmarks.accounting

Epsilon of Gaussian noise at a delta, and the noise multiplier for an epsilon, as `shepherd privacy plan` has
them: from the tests of dp-accounting, from its closed form, and from tables of clients and of silos' examples
that were made with dp-accounting by itself. A fixture of delta at an epsilon is asked for the epsilon at that
delta. Mechanisms that no part of this package has are asked of dp-accounting as it is installed. Every value
must be within 1 % of the published one.
"""

from __future__ import annotations

import math
import sys
from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from time import process_time
from typing import Any

from dp_accounting import dp_event, pld, rdp

from benchmarks import common
from benchmarks.common import Figures, Table
from shepherd.core import FixedSize, Poisson, Sampling, Spending, Turns
from shepherd.privacy import accountant, example_level

TOLERANCE = 0.01
OURS, LIBRARY = "the accountant", "dp-accounting alone"
SILOS = {
    (1_500, 16, 281): (0.890, 0.625, 0.462),
    (1_500, 32, 141): (1.077, 0.701, 0.502),
    (1_500, 32, 470): (1.553, 0.859, 0.598),
    (15_000, 64, 234): (0.747, 0.566, 0.417),
}
"""Examples, batch and steps -> the noise multiplier for each of `TARGETS`, at delta n^-1.1."""
TARGETS = (1, 3, 8)
CLIENTS = {
    (1_000, 50, 100, 1.0): 2.40,
    (10_000, 500, 100, 1.0): 3.13,
    (100_000, 1_000, 200, 0.7): 3.12,
    (100, 5, 20, 1.0): 0.64,
}
"""Clients, those in a round on average, rounds and noise -> epsilon at delta n^-1.1."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fixture:
    """One published value and how it is computed here."""

    name: str
    of: str
    """What is published: epsilon, or noise."""
    published: float
    ours: Callable[[], float]
    by: str = OURS


def _epsilon(noise: float, sampling: Sampling, steps: int, delta: float) -> Callable[[], float]:
    return lambda: accountant.epsilon([Spending(noise=noise, sampling=sampling, steps=steps)], delta)


def _noise(target: float, delta: float, sampling: Sampling, steps: int) -> Callable[[], float]:
    return lambda: accountant.noise_for(target, delta, sampling, steps, interval=example_level.COARSE)


def _of_events(delta: float, *events: tuple[Any, int]) -> Callable[[], float]:
    """Epsilon of each event so many times, by privacy loss distributions."""

    def ours() -> float:
        made: Any = pld.PLDAccountant(value_discretization_interval=example_level.COARSE)
        for event, times in events:
            made.compose(event, times)
        return float(made.get_epsilon(delta))

    return ours


def _of_divergences(delta: float) -> float:
    """Epsilon of Rényi divergences of 1.1 at each order from 2 to 32."""
    orders = range(2, 33)
    found, _ = rdp.compute_epsilon(orders, [1.1] * len(orders), delta)
    return float(found)


def _mechanisms() -> Iterator[Fixture]:
    whole = Turns(every=1)
    yield Fixture(
        name="3 steps, noise √3, delta 0.126936",
        of="epsilon",
        published=1.0,
        ours=_epsilon(math.sqrt(3), whole, 3, 0.126936),
    )
    yield Fixture(
        name="3 Poisson steps, chance 0.2, noise 0.5, delta 0.15594",
        of="epsilon",
        published=1.0,
        ours=_epsilon(0.5, Poisson(chance=0.2), 3, 0.15594),
    )
    yield Fixture(
        name="1 step, noise 1, delta 1e-5 (closed form)",
        of="epsilon",
        published=4.377178,
        ours=_epsilon(1.0, whole, 1, 1e-5),
    )
    yield Fixture(
        name="1 step, epsilon 1, delta 1e-6 (closed form)",
        of="noise",
        published=4.224679,
        ours=_noise(1.0, 1e-6, whole, 1),
    )
    yield Fixture(  # all of a cohort of fixed size: replacing one is removing one at half the noise
        name="1 step, noise 4.530877117, delta 1e-6, Rényi divergences",
        of="epsilon",
        published=1.0,
        ours=_epsilon(2 * 4.530877117, FixedSize(size=100, of=100), 1, 1e-6),
    )


def _of_library() -> Iterator[Fixture]:
    laplace = dp_event.PoissonSampledDpEvent(0.2, dp_event.LaplaceDpEvent(0.5))
    first, second = (dp_event.TruncatedSubsampledGaussianDpEvent(n, 0.5, 2, 1.0) for n in (4, 3))
    mixtures = (
        dp_event.MixtureOfGaussiansDpEvent(1.0, [0.0, 1.0, 2.0], [0.2, 0.6, 0.2]),
        dp_event.MixtureOfGaussiansDpEvent(2.0, [0.0, 2.0, 3.0], [0.33, 0.34, 0.33]),
    )
    rest: dict[str, tuple[float, Callable[[], float]]] = {
        "Rényi divergences of 1.1, orders 2 to 32, delta 1e-5": (
            1.32783806176,
            lambda: _of_divergences(1e-5),
        ),
        "3 Poisson steps, chance 0.2, Laplace 0.5, delta 1e-14": (2.46964, _of_events(1e-14, (laplace, 3))),
        "truncated Poisson steps, 3 and 2, delta 1e-6": (
            17.904330,
            _of_events(1e-6, (first, 3), (second, 2)),
        ),
        "mixtures of Gaussians, 3 and 2, delta 1e-6": (
            17.193115,
            _of_events(1e-6, (mixtures[0], 3), (mixtures[1], 2)),
        ),
    }
    for name, (published, ours) in rest.items():
        yield Fixture(name=name, of="epsilon", published=published, ours=ours, by=LIBRARY)


def _tables() -> Iterator[Fixture]:
    for (clients, cohort, rounds, noise), published in CLIENTS.items():
        yield Fixture(
            name=f"{clients:,} clients, {cohort:,} a round, {rounds} rounds, noise {noise:g}",
            of="epsilon",
            published=published,
            ours=_epsilon(noise, Poisson(chance=cohort / clients), rounds, clients**-1.1),
        )
    for (examples, batch, steps), multipliers in SILOS.items():
        for target, published in zip(TARGETS, multipliers, strict=True):
            yield Fixture(
                name=f"{examples:,} examples, batch {batch}, {steps} steps, epsilon {target}",
                of="noise",
                published=published,
                ours=_noise(target, examples**-1.1, Poisson(chance=batch / examples), steps),
            )


FIXTURES = (*_mechanisms(), *_of_library(), *_tables())


def main(arguments: Sequence[str] | None = None) -> int:
    return common.run(common.parser(__doc__).parse_args(arguments), measure, tables)


def measure(options: Namespace) -> Figures:
    rows = [_measured(each) for each in (FIXTURES[:3] if options.quick else FIXTURES)]
    worst = max(abs(row["difference"]) for row in rows)
    return {"rows": rows, "worst": worst, "passed": worst <= TOLERANCE}


def _measured(fixture: Fixture) -> Figures:
    began = process_time()
    ours = fixture.ours()
    return {
        "name": fixture.name,
        "of": fixture.of,
        "by": fixture.by,
        "published": fixture.published,
        "ours": ours,
        "difference": ours / fixture.published - 1,
        "seconds": process_time() - began,
    }


def tables(figures: Figures) -> list[Table]:
    rows = [
        (
            row["name"],
            row["of"],
            f"{row['published']:.7g}",
            f"{row['ours']:.5g}",
            f"{row['difference']:+.2%}",
            row["by"],
            f"{row['seconds']:.1f}",
        )
        for row in figures["rows"]
    ]
    columns = ("fixture", "value", "published", "ours", "difference", "by", "seconds")
    worst = f"largest difference {figures['worst']:.2%}; the aim is {TOLERANCE:.0%}"
    return [Table("The accountant's fixtures", columns, rows, (worst,))]


if __name__ == "__main__":
    sys.exit(main())
