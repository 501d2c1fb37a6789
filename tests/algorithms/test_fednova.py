"""FedNova by hand, and where it ends on quadratics whose clients make unequal numbers of steps."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.quadratic import Quadratic, bits, chosen, drawn, method

from shepherd.aggregations import mean
from shepherd.algorithms import fedavg, fednova
from shepherd.core import Adapter, Broadcast, ClientInfo, Context, LocalResult, ServerState, Update
from shepherd.errors import UpdateRefused
from shepherd.rounds import report_row, rounds, start
from shepherd.rounds.weights import Allowed

NOVA = fednova.build(fednova.Config())
STEPS = {"c0": 1, "c1": 20}


def run(algorithm, own_steps, *, until, rate=0.01, allow=None, steps=3, **how):
    asked = method(algorithm)
    federation = Quadratic(
        algorithm, clients=len(own_steps), rate=rate, noise=0.0, own_steps=own_steps, steps=steps, **how
    )
    federation.infos = [ClientInfo(name=info.name, examples=1) for info in federation.infos]
    more = {} if allow is None else {"allow": allow}
    loop = rounds(
        asked,
        federation,
        start(asked, drawn(0)),
        until=until,
        select=chosen("all"),
        quorum=0.5,
        seed=1,
        max_share=1.0,
        **more,
    )
    return federation, list(loop)


def test_a_round_worked_by_hand():
    """Changes 6 in 2 steps and 12 in 6, with weights 1/4 and 3/4: tau_eff = 5, d = 3/4 + 6/4, moved 11.25."""
    updates = [
        Update(
            round=0, clients=(c,), weight=w, delta=Adapter({"w": [d]}), extra=Adapter({fednova.STEPS: [t]})
        )
        for c, w, d, t in (("a", 1.0, 6.0, 2.0), ("b", 3.0, 12.0, 6.0))
    ]
    state = ServerState(round=0, adapter=Adapter({"w": [0.0]}))
    accepted = [NOVA.accept(update, {"steps": 6}) for update in updates]
    combined = NOVA.settle(mean.mean(state, iter(accepted), Context()))
    assert combined.delta["w"].tolist() == [5 * (0.25 * 3 + 0.75 * 2)]


def test_unequal_steps_do_not_pull_it_away_from_the_minimum_as_they_pull_fedavg():
    """Client k changes by (1 - (1 - rate)^tau_k) (target_k - x), so FedAvg ends at the targets' mean with
    these weights, and FedNova with them over tau_k: for small rates, 1 to 20 and 1 to 1."""
    rate = 0.005
    pulls = {c: 1 - (1 - rate) ** tau for c, tau in STEPS.items()}
    weights = {
        "fednova": [pulls[c] / tau for c, tau in STEPS.items()],
        "fedavg": list(pulls.values()),
    }
    assert weights["fednova"][1] / weights["fednova"][0] == pytest.approx(1, rel=0.05)
    assert weights["fedavg"][1] / weights["fedavg"][0] == pytest.approx(20, rel=0.05)
    for name, algorithm in (("fednova", NOVA), ("fedavg", fedavg.ALGORITHM)):
        federation, states = run(algorithm, STEPS, until=250, rate=rate)
        for n, tensor in states[-1][0].adapter.items():
            own = [federation.targets[c][n].astype(float) for c in STEPS]
            np.testing.assert_allclose(tensor, np.average(own, axis=0, weights=weights[name]), atol=2e-4)


@given(steps=st.integers(1, 8), clients=st.integers(1, 4))
@settings(max_examples=15, deadline=None)
def test_with_equal_steps_it_is_fedavg(steps, clients):
    own = {f"c{k}": steps for k in range(clients)}
    one, two = (run(algorithm, own, until=2, rate=0.1)[1][-1][0] for algorithm in (NOVA, fedavg.ALGORITHM))
    for n in one.adapter:
        np.testing.assert_allclose(one.adapter[n], two.adapter[n], rtol=1e-5, atol=1e-6)


def test_the_gap_is_that_of_the_clients_own_adapters():
    """At the first round both methods see the same local adapters."""
    gaps = [
        report_row(run(algorithm, STEPS, until=1, rate=0.1)[1][0][1])["gap"]
        for algorithm in (NOVA, fedavg.ALGORITHM)
    ]
    assert gaps[0] == pytest.approx(gaps[1], rel=1e-4)
    assert gaps[0] > 0


def test_steps_count_by_the_rate_that_they_were_made_with():
    def sent(**how):
        adapter = Adapter({"w": [0.0]})
        result = LocalResult(start=adapter, local=adapter, steps=4, **how)
        return NOVA.remember(Adapter(), Broadcast(round=0, adapter=adapter, seed=0), result)[1]

    assert sent(rate_sum=0.5, learning_rate=0.2)[fednova.STEPS].tolist() == [2.5]
    assert sent(rate_sum=0.8, learning_rate=0.2)[fednova.STEPS].tolist() == [4.0]
    assert sent(rate_sum=0.8)[fednova.STEPS].tolist() == [4.0]


@pytest.mark.parametrize("claimed", [0.0, -2.0, 21.0, 1e30])
def test_steps_that_the_visit_cannot_have_are_a_counted_failure(claimed):
    """Else one client could scale the whole round."""
    lying = replace(
        NOVA,
        remember=lambda memory, broadcast, result: (
            memory,
            Adapter({fednova.STEPS: [claimed if result.steps == 20 else result.effective_steps]}),
        ),
    )
    counts = Allowed(counts={"steps": 20.0})
    _, ((state, report),) = run(lying, STEPS, until=1, allow=lambda client: counts)
    assert list(report.failures) == ["c1"]
    assert "effective_steps" in report.failures["c1"]
    assert list(report.weights) == ["c0"]
    honest = run(NOVA, {"c0": 1}, until=1)[1][0][0]
    assert bits(state.adapter) == bits(honest.adapter)


def test_an_update_of_several_clients_is_refused():
    both = Update(
        round=0,
        clients=("a", "b"),
        weight=2.0,
        delta=Adapter({"w": [1.0]}),
        extra=Adapter({fednova.STEPS: [1]}),
    )
    with pytest.raises(UpdateRefused, match="merges several clients"):
        NOVA.accept(both, {})
