"""Clients whose examples are protected: what they draw, what they send, and which visits they refuse."""

from __future__ import annotations

import numpy as np
import pytest
from tests.federation.test_simulation import RATE, SIZES, broadcast, simulated

from shepherd.core import Failure, Seeded
from shepherd.privacy.example_level import ExampleAccount
from shepherd.settings import ExamplesTable
from shepherd.training import tune

PRIVATE = ExamplesTable(norm=0.5, noise=1.0)
EQUAL = {"weights": "equal", "rounds": 4}


def private(base, account=None, **more):
    return simulated(
        base,
        privacy=PRIVATE,
        account=account,
        federation=EQUAL,
        tuning={"max_steps": 6, "learning_rate": RATE, **more.pop("tuning", {})},
        **more,
    )


@pytest.fixture
def jobs(monkeypatch) -> list[tune.Job]:
    asked: list[tune.Job] = []
    honest = tune.tune

    def spy(base, job, watch):
        asked.append(job)
        return honest(base, job, watch)

    monkeypatch.setattr(tune, "tune", spy)
    return asked


def test_an_update_carries_no_number_of_its_visit(llama) -> None:
    for update in private(llama).run(broadcast(llama), ["ann", "bob", "cay"]):
        assert not isinstance(update, Failure)
        assert dict(update.metrics) == {}
        assert update.weight == 1.0
        assert update.delta.norm() > 0


def test_batches_are_drawn_anew_each_time_and_never_by_a_seed(llama, jobs) -> None:
    for _ in range(3):
        simulation = private(llama)
        list(simulation.run(broadcast(llama), ["bob"]))
    drawn = [[batch.tolist() for batch in job.visits[0].batches] for job in jobs]
    assert all(len(batches) == 6 for batches in drawn)
    assert drawn[0] != drawn[1] or drawn[1] != drawn[2]  # 7 examples, 6 steps: equal once in 10^11
    assert {job.visits[0].expected_batch for job in jobs} == {2}
    assert all(job.privacy is not None and job.privacy.norm == 0.5 for job in jobs)


def test_two_simulations_of_one_seed_differ_and_injected_draws_repeat(llama) -> None:
    def sent(**more) -> dict[str, np.ndarray]:
        (update,) = private(llama, **more).run(broadcast(llama), ["bob"])
        return dict(update.delta)

    first, second = sent(), sent()
    assert any((first[name] != second[name]).any() for name in first)
    one, same = sent(private_draws=Seeded(3)), sent(private_draws=Seeded(3))
    assert all((one[name] == same[name]).all() for name in one)


def test_steps_that_drew_nobody_are_made_all_the_same(llama, jobs) -> None:
    (update,) = private(llama, tuning={"max_steps": 40, "batch_size": 1}).run(broadcast(llama), ["bob"])
    batches = jobs[0].visits[0].batches
    assert any(len(batch) == 0 for batch in batches)
    assert len(batches) == 40
    assert np.isfinite(update.delta.norm())


def test_the_cursor_counts_steps_and_coverage_is_what_to_expect(llama) -> None:
    simulation = private(llama)
    list(simulation.run(broadcast(llama), ["ann", "bob"]))
    assert simulation.steps_made() == {"ann": 6, "bob": 6}
    assert simulation.coverage()["bob"] == pytest.approx(1 - (1 - 2 / 7) ** 6)
    assert simulation.coverage()["dan"] == 0.0


def test_a_visit_beyond_the_plan_and_the_budget_is_refused_and_the_others_go_on(llama, jobs) -> None:
    account = ExampleAccount(noise=1.0, batch_size=2, delta=1e-2)
    once = {name: account.epsilon(size, 6) for name, size in SIZES.items()}
    limit = (account.epsilon(7, 12) + once["ann"]) / 2  # two visits of bob, and one of ann, who holds less
    assert account.epsilon(7, 12) < limit < account.epsilon(3, 12)
    once_each = dict.fromkeys(SIZES, 1)
    account = ExampleAccount(noise=1.0, batch_size=2, delta=1e-2, limit=limit, planned=once_each)
    simulation = private(llama, account)
    for number in range(2):
        answers = {a.client: a for a in simulation.run(broadcast(llama, number), ["ann", "bob"])}
    assert isinstance(answers["ann"], Failure)
    assert "above privacy.epsilon" in answers["ann"].reason
    assert not isinstance(answers["bob"], Failure)
    assert [visit.client for visit in jobs[-1].visits] == ["bob"]
    assert simulation.steps_made() == {"ann": 6, "bob": 12}  # a refusal spends nothing
