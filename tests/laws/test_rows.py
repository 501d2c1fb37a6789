"""Law 1: row k belongs to adapter k. No client's numbers reach another's, and nothing global is read."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from tests.model import bases

from shepherd.algorithms import fedavg
from shepherd.core import Broadcast
from shepherd.data.shared_prefix import MIN_PREFIX_TOKENS
from shepherd.model.base import Base
from shepherd.settings import TuningTable
from shepherd.training import tune

PLAIN = fedavg.ALGORITHM
RATE = 0.01
TOLERANCE = 0.02 * RATE
"""Matrix shapes differ with the cohort, so sums are rounded otherwise; AdamW turns that into at most a
small share of a step, `RATE`, and a gradient that leaked would turn into whole steps."""


@pytest.fixture(scope="session")
def routing(tmp_path_factory: pytest.TempPathFactory) -> Base:
    """Tokens of all rows meet in the same experts, which carry adapters too."""
    folder = bases.save(bases.MIXTURES["mixtral"], tmp_path_factory.mktemp("mixtral"))
    return bases.load(folder, target_parameters=bases.STACKS)


@pytest.fixture(params=["llama", "dropping", "routing"])
def base(request: pytest.FixtureRequest) -> Base:
    return request.getfixturevalue(request.param)


def visit(client: str, steps: int) -> tune.Visit:
    seed = sum(client.encode())
    # one template's prefix for all clients: shared inside a row, and never with another client's
    data = bases.beginning_alike(bases.tokens(seed, [9, 4, 13, 7, 5, 11, 6, 8]), MIN_PREFIX_TOKENS + 1)
    taken = np.random.default_rng(seed).integers(0, len(data), (steps, 3))
    return tune.Visit(client=client, data=data, batches=list(taken), seed=seed)


def tuned(base: Base, *visits: tune.Visit, algorithm=PLAIN, **table) -> dict[str, tune.TuningResult]:
    # a pass holds a row of each of three clients
    tuning = TuningTable.model_validate(table)
    sent = Broadcast(round=0, adapter=bases.random_adapter(base, 5), seed=0)
    results = bases.tuned(base, sent, algorithm, visits, tuning, learning_rate=RATE, micro_batch_tokens=400)
    assert [result.client for result in results] == [visit.client for visit in visits]
    return {result.client: result for result in results}


A, B, C = visit("a", 2), visit("b", 5), visit("c", 3)


def test_the_order_of_the_cohort_changes_no_bit(base) -> None:
    first, second = tuned(base, A, B, C), tuned(base, C, A, B)
    for client in "abc":
        assert first[client] == second[client]


def test_the_same_visit_twice_gives_the_same_bits(base) -> None:
    assert tuned(base, A, B) == tuned(base, A, B)


def test_clients_together_are_what_each_is_alone(base) -> None:
    together = tuned(base, A, B, C)
    for one in (A, B, C):
        alone, result = tuned(base, one)[one.client], together[one.client]
        assert result.report.loss == pytest.approx(alone.report.loss, rel=1e-5)
        assert result.report.trained_tokens == alone.report.trained_tokens
        for name, delta in alone.delta.items():
            np.testing.assert_allclose(result.delta[name], delta, atol=TOLERANCE, err_msg=name)


def test_who_else_is_there_matters_no_more_than_rounding(base) -> None:
    beside_b, beside_c = tuned(base, A, B)["a"], tuned(base, A, C)["a"]
    for name, delta in beside_b.delta.items():
        np.testing.assert_allclose(delta, beside_c.delta[name], atol=TOLERANCE, err_msg=name)


def test_dropout_is_on_and_goes_by_the_visits_seed(dropping, llama) -> None:
    other = tune.Visit(client="a", data=A.data, batches=A.batches, seed=A.seed + 1)
    first, second, plain = tuned(dropping, A)["a"], tuned(dropping, other)["a"], tuned(llama, A)["a"]
    assert first.delta != second.delta
    assert first.delta != plain.delta
    assert first.report.loss != second.report.loss


def test_a_clients_nan_reaches_no_other_client(base) -> None:
    def poison(name, grad, param, sent, memory, step):
        grad = grad.clone()
        grad[1] = torch.nan  # b's place, by name
        return grad

    clean = tuned(base, A, B, C)
    poisoned = tuned(base, A, B, C, algorithm=replace(PLAIN, correct=poison))
    assert all(np.isnan(delta).all() for delta in poisoned["b"].delta.values())
    assert np.isnan(poisoned["b"].report.loss)
    for client in "ac":
        if base.adapter.target_parameters:  # how many of b's tokens an expert gets shapes its product
            for name, delta in clean[client].delta.items():
                np.testing.assert_allclose(poisoned[client].delta[name], delta, atol=TOLERANCE, err_msg=name)
        else:
            assert poisoned[client] == clean[client]


def test_no_global_generator_is_read_or_advanced(base) -> None:
    def states() -> tuple[object, ...]:
        name, keys, *rest = np.random.get_state()  # noqa: NPY002 - the global one is the point
        return random.getstate(), name, keys.tobytes(), rest, torch.get_rng_state().numpy().tobytes()

    before = states()
    first = tuned(base, A, B)
    assert states() == before
    random.seed(1)
    np.random.seed(1)  # noqa: NPY002
    torch.manual_seed(1)
    assert tuned(base, A, B) == first


def test_a_visit_leaves_nothing_behind_for_the_next(base) -> None:
    first = tuned(base, A)
    tuned(base, B, C)
    assert tuned(base, A) == first
    assert base.model.config._attn_implementation == base.attention
    assert all(parameter.grad is None for parameter in base.model.parameters())
