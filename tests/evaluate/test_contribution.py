"""Contributions worked by hand on quadratic clients, where every round can be made again without one."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.quadratic import Quadratic, drawn, method

from shepherd import plugins
from shepherd.algorithms import fed_sb, fedavg, fednova
from shepherd.config import PartTable
from shepherd.core import Adapter, Context, Seeded, Update, round_audit
from shepherd.evaluate.contribution import Held, projections, recorded, without_each
from shepherd.rounds import rounds, start

CONTEXT = Context(clients=4)


def update(client, change, weight=1.0):
    return Update(round=0, clients=(client,), delta=Adapter({"w": change}), weight=weight)


def run(asked, cohort, until=1, state=None):
    federation = Quadratic(asked.algorithm, own_steps={"c1": 5})
    loop = rounds(
        asked,
        federation,
        state or start(asked, drawn(0)),
        until=until,
        select=lambda clients, round, seed: cohort,
        quorum=1.0,
        seed=3,
        context=CONTEXT,
        max_share=1.0,
    )
    return list(loop)


@pytest.mark.parametrize("algorithm", [fedavg.ALGORITHM, fednova.build(fednova.Config())])
@pytest.mark.parametrize("server", ["sgd", "fedadam", "nesterov"])
def test_a_round_without_a_client_is_the_round_that_did_not_ask_it(algorithm, server):
    asked = method(algorithm, server=plugins.server_optimiser(PartTable(name=server)))
    held = Held(lambda number: number == 1)
    everyone = ("c0", "c1", "c2")
    run(recorded(asked, held), everyone)
    found = dict(without_each(asked, start(asked, drawn(0)), held.updates, CONTEXT, Seeded(0)))
    assert list(found) == list(everyone)
    for client, state in found.items():
        ((apart, _),) = run(asked, tuple(name for name in everyone if name != client))
        for name, tensor in apart.adapter.items():
            np.testing.assert_allclose(state.adapter[name], tensor, rtol=1e-6, atol=1e-7)


def test_a_round_of_cores_without_a_client_is_the_round_that_did_not_ask_it():
    asked, everyone, held = (
        method(fed_sb.build(fed_sb.Config())),
        ("c0", "c1", "c2"),
        Held(lambda number: True),
    )
    ((before, _),) = run(asked, everyone)
    run(recorded(asked, held), everyone, until=2, state=before)
    found = dict(without_each(asked, before, held.updates, CONTEXT, Seeded(0)))
    assert list(found) == list(everyone)
    for client, state in found.items():
        others = tuple(name for name in everyone if name != client)
        ((apart, _),) = run(asked, others, until=2, state=before)
        for name, tensor in apart.adapter.items():
            np.testing.assert_allclose(state.adapter[name], tensor, rtol=1e-5, atol=1e-6)


def test_recording_changes_no_bit_and_no_figure_and_holds_the_rounds_that_are_wanted():
    asked, everyone, held = method(), ("c0", "c1"), Held(lambda number: number == 2)
    plain = run(asked, everyone, until=3)
    counts = []
    watched = recorded(asked, held)
    for number in (1, 2, 3):
        before = plain[number - 2][0] if number > 1 else None
        counts.append(0)
        ((state, report),) = run(watched, everyone, until=number, state=before)
        counts[-1] = len(held.updates)
        assert state.adapter == plain[number - 1][0].adapter
        assert report.figures == plain[number - 1][1].figures
    assert counts == [0, 2, 0]
    quiet = replace(asked, algorithm=replace(asked.algorithm, observe=None))
    assert set(run(recorded(quiet, held), everyone)[0][1].figures) == set(round_audit.COLUMNS)


def test_a_client_alone_cannot_be_left_out():
    asked = method()
    assert not dict(
        without_each(asked, start(asked, Adapter({"w": [1.0]})), [update("a", [1.0])], CONTEXT, Seeded(0))
    )


def test_projections_by_hand():
    """Changes (3, 0), (0, 1), (-1, 0) with weights 2, 1, 1: the mean is (5/4, 1/4), its square 26/16."""
    updates = [update("a", [3.0, 0.0], 2.0), update("b", [0.0, 1.0]), update("c", [-1.0, 0.0])]
    found = projections(updates, fall=0.26)
    assert found == pytest.approx({"a": 0.26 * (30 / 16) / (26 / 16), "b": 0.01, "c": -0.05})


@given(seed=st.integers(0, 10**6), clients=st.integers(1, 6), fall=st.floats(-1, 1))
@settings(max_examples=30, deadline=None)
def test_projections_add_up_to_the_fall(seed, clients, fall):
    rng = np.random.default_rng(seed)
    updates = [update(f"c{k}", rng.normal(size=(2, 3)), float(rng.uniform(0.1, 9))) for k in range(clients)]
    assert sum(projections(updates, fall).values()) == pytest.approx(fall, abs=1e-9)


def test_a_mean_of_nothing_gives_nothing_and_fewer_ranks_count_as_zeros():
    assert projections([update("a", [1.0]), update("b", [-1.0])], 0.5) == {"a": 0.0, "b": 0.0}
    short = projections([update("a", [[1.0, 2.0]]), update("b", [[3.0, 1.0], [1.0, 0.0]])], 1.0)
    whole = projections([update("a", [[1.0, 2.0], [0.0, 0.0]]), update("b", [[3.0, 1.0], [1.0, 0.0]])], 1.0)
    assert short == pytest.approx(whole)
