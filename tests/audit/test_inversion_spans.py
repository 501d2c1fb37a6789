"""Spans against dense least squares, and false alarms against their bound."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from shepherd.audit import inversion_spans
from shepherd.audit.inversion_spans import BFLOAT16_ROUNDING, span

WIDTH = 24


def _inputs(count: int, seed: int) -> NDArray[Any]:
    return np.random.default_rng(seed).normal(size=(count, WIDTH)).astype(np.float32)


def _gradient(inputs: NDArray[Any], rank: int, seed: int) -> NDArray[Any]:
    """A change of A (rank, in): each row a mix of the inputs."""
    mix = np.random.default_rng(seed).normal(size=(rank, len(inputs)))
    return (mix @ inputs.astype(np.float64)).astype(np.float32)


def _least_squares(inputs: NDArray[Any], candidates: NDArray[Any]) -> NDArray[Any]:
    """Relative distance of each candidate from all mixes of the inputs, by solving for the mix."""
    x = candidates.astype(np.float64)
    mix, *_ = np.linalg.lstsq(inputs.astype(np.float64).T, x.T, rcond=None)
    return np.linalg.norm(x.T - inputs.T @ mix, axis=0) / np.linalg.norm(x, axis=1)


@given(count=st.integers(1, 12), more=st.integers(0, 8), seed=st.integers(0, 999))
def test_distances_are_those_of_least_squares(count: int, more: int, seed: int) -> None:
    inputs = _inputs(count, seed)
    candidates = np.concatenate([inputs, _inputs(5, seed + 1)])
    found = span(_gradient(inputs, count + more, seed), 1e-6)
    assert found.dimensions == count
    distances, _ = found.distances(candidates)
    np.testing.assert_allclose(distances, _least_squares(inputs, candidates), atol=2e-3)


@given(count=st.integers(1, 5), seed=st.integers(0, 999))
def test_a_change_of_b_tells_of_inputs_after_a(count: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    a, slopes = rng.normal(size=(6, WIDTH)), rng.normal(size=(30, count))
    inputs, others = _inputs(count, seed), _inputs(5, seed + 1)
    found = span(slopes @ (inputs @ a.T), 1e-12, a)
    candidates = np.concatenate([inputs, others])
    distances, _ = found.distances(candidates)
    np.testing.assert_allclose(distances, _least_squares(inputs @ a.T, candidates @ a.T), atol=1e-5)


def test_what_chance_does_is_below_its_bound() -> None:
    rng = np.random.default_rng(0)
    for dimensions, width in ((1, 3), (3, 6), (5, 6), (10, 12)):
        found = span(rng.normal(size=(dimensions, width)), 0.0)
        distances, _ = found.distances(rng.normal(size=(20_000, width)))
        for nearer in (0.05, 0.2, 0.5):
            bound = float(np.exp(found.log_chances(np.array([nearer])))[0])
            assert np.mean(distances <= nearer) <= 1.1 * bound + 1e-3


def _names(modules: int) -> list[tuple[str, str]]:
    return [(f"a{k}", f"b{k}") for k in range(modules)]


def test_modules_with_one_input_add_up() -> None:
    inputs = _inputs(10, 0)
    before = {name: np.zeros((4, WIDTH)) for pair in _names(3) for name in pair}
    delta = {f"a{k}": _gradient(inputs, 4, k) for k in range(3)}
    alone = inversion_spans.seen(_names(1), before, delta)
    three = inversion_spans.seen(_names(3), before, delta)
    candidates = np.concatenate([inputs, _inputs(100, 1)])
    assert not alone.inside(candidates, among=110)[0].any()
    assert three.inside(candidates, among=110)[0].tolist() == [True] * 10 + [False] * 100


@pytest.mark.parametrize("noise", [1e-6, 1e-4, 1e-2, 1.0, 100.0])
def test_noise_puts_nothing_inside_that_was_no_input(noise: float) -> None:
    inputs = _inputs(6, 0)
    rng = np.random.default_rng(1)
    change = _gradient(inputs, 8, 2) + noise * rng.normal(size=(8, WIDTH))
    told = inversion_spans.seen(_names(1), {"a0": np.zeros((8, WIDTH))}, {"a0": change}, noise=noise)
    inside, _ = told.inside(np.concatenate([inputs, _inputs(2000, 3)]), among=2006)
    assert not inside[6:].any()
    assert inside[:6].all() == (noise < 1e-1)


def test_nothing_comes_out_of_noise_alone() -> None:
    rng = np.random.default_rng(0)
    before = {"a0": np.zeros((8, WIDTH)), "b0": np.zeros((30, 8))}
    delta = {name: rng.normal(size=tensor.shape) for name, tensor in before.items()}
    told = inversion_spans.seen(_names(1), before, delta, noise=1.0)
    inside, log_chances = told.inside(_inputs(2000, 1), among=2000)
    assert told.dimensions == 0
    assert not inside.any()
    assert (log_chances == 0).all()


def test_rounding_widens_the_tolerance() -> None:
    inputs = _inputs(6, 0)
    change = _gradient(inputs, 8, 2)
    rounded = change * (1 + BFLOAT16_ROUNDING * np.random.default_rng(0).uniform(-1, 1, change.shape))
    before = {"a0": np.zeros((8, WIDTH))}
    blind = inversion_spans.seen(_names(1), before, {"a0": rounded})
    aware = inversion_spans.seen(_names(1), before, {"a0": rounded}, rounding=BFLOAT16_ROUNDING)
    candidates = np.concatenate([inputs, _inputs(2000, 3)])
    assert not blind.inside(candidates, among=2006)[0].any()
    assert aware.inside(candidates, among=2006)[0].tolist() == [True] * 6 + [False] * 2000


def test_vectors_that_share_a_large_part_are_not_taken_for_inputs() -> None:
    rng = np.random.default_rng(0)
    shared = rng.normal(size=WIDTH)
    alike = shared + 0.1 * rng.normal(size=(2003, WIDTH))
    change = _gradient(alike[:3].astype(np.float32), 8, 2) + 0.5 * rng.normal(size=(8, WIDTH))
    told = inversion_spans.seen(_names(1), {"a0": np.zeros((8, WIDTH))}, {"a0": change}, noise=0.5)
    assert told.dimensions == 1
    assert told.inside(alike, among=2003)[0].sum() > 100
    others = shared + 0.1 * rng.normal(size=(256, WIDTH))
    assert not told.against(others).inside(alike, among=2003)[0].any()
