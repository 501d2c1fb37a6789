"""The noise of a large cohort that is simulated with a small one."""

from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
from benchmarks.client_privacy import Cell, Grid

from benchmarks import client_privacy, common
from shepherd.core import Adapter, Context, Poisson, Seeded, Update


@pytest.fixture
def grid(tmp_path: Path) -> Grid:
    options = Namespace(
        on="world",
        share=0.1,
        norm=2.0,
        more=[],
        quick=False,
        keep=tmp_path,
        noise_cohort=[0, 5000],
        table=True,
    )
    try:
        return Grid.of(options)
    except common.Missing as missing:
        pytest.skip(f"{missing} is missing")


def deviation(grid: Grid, cell: Cell) -> float:
    """Standard deviation of the released mean of an empty round."""
    made = grid._transform(grid.noise(cell), cell)
    empty = Update(round=0, weight=0.0, clients=(), delta=Adapter({"w": np.zeros(50_000)}))
    state = made.init(Context(clients=cell.clients, share=0.1))
    released, _ = made.on_server(empty, state, Seeded(0))
    return float(released.delta["w"].std())


@pytest.mark.slow
def test_the_released_mean_has_the_noise_of_the_cohort_that_is_accounted_for(grid: Grid) -> None:
    here = Cell(clients=100, epsilon="8", noise_cohort=0, seed=0)
    there = Cell(clients=100, epsilon="8", noise_cohort=5000, seed=0)
    own, large = grid.noise(here), grid.noise(there)
    assert own is not None
    assert large is not None
    assert (own.scale, own.population) == (1.0, 100)
    assert (large.scale, large.population) == (10 / 5000, 50_000)
    assert deviation(grid, here) == pytest.approx(own.multiplier * 2.0 / 10, rel=0.02)
    assert deviation(grid, there) == pytest.approx(large.multiplier * 2.0 / 5000, rel=0.02)
    spent = grid._transform(large, there).mechanism.spent(Poisson(chance=0.1), 20)
    assert spent.noise == large.multiplier


@pytest.mark.slow
def test_the_benchmark_runs_and_makes_nothing_twice(tmp_path: Path) -> None:
    asked = ["--quick", "--keep", str(tmp_path), "--clients", "20", "--share", "0.3", "--seeds", "1"]
    assert client_privacy.main([*asked, "--epsilons", "8", "inf", "plain"]) == 0
    files = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.json")}
    assert len(files) == 4
    assert client_privacy.main([*asked, "--table"]) == 0
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.json")} == files
