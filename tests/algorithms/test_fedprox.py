import numpy as np
import pytest
from tests.quadratic import Quadratic, drawn, method

from shepherd.algorithms import fedavg, fedprox
from shepherd.config import validated
from shepherd.core import Broadcast
from shepherd.errors import SettingsError
from shepherd.rounds import rounds, start


def build(mu):
    return fedprox.build(fedprox.Config(mu=mu))


def change(algorithm, **how):
    """What client c0 changes in one visit."""
    broadcast = Broadcast(round=0, adapter=drawn(0), seed=7)
    (update,) = Quadratic(algorithm, noise=0.0, **how).run(broadcast, ["c0"])
    return update.delta


@pytest.mark.parametrize("mu", [0.0, 0.5, 3.0])
def test_many_steps_reach_the_closed_form(mu):
    """argmin ||w - target||^2 / 2 + mu / 2 ||w - w_t||^2 = w_t + (target - w_t) / (1 + mu)."""
    delta = change(build(mu), steps=400, rate=0.1)
    target, sent = Quadratic(build(mu)).targets["c0"], drawn(0)
    for name in sent:
        np.testing.assert_allclose(delta[name], (target[name] - sent[name]) / (1 + mu), atol=2e-6)


@pytest.mark.parametrize("steps", [1, 4])
def test_few_steps_follow_the_geometric_sum(steps):
    """w_s - w_t = (target - w_t) (1 - (1 - rate (1 + mu))^s) / (1 + mu)."""
    mu, rate = 2.0, 0.1
    delta = change(build(mu), steps=steps, rate=rate)
    share = (1 - (1 - rate * (1 + mu)) ** steps) / (1 + mu)
    target, sent = Quadratic(build(mu)).targets["c0"], drawn(0)
    for name in sent:
        np.testing.assert_allclose(delta[name], share * (target[name] - sent[name]), atol=1e-6)


def test_mu_zero_is_fedavg():
    def final(algorithm):
        federation = Quadratic(algorithm)
        everyone = tuple(info.name for info in federation.clients())
        loop = rounds(
            method(algorithm),
            federation,
            start(method(algorithm), drawn(0)),
            until=3,
            select=lambda clients, round, seed: everyone,
            quorum=1.0,
            seed=1,
        )
        *_, (state, _) = loop
        return state.adapter

    prox, avg = final(build(0.0)), final(fedavg.ALGORITHM)
    assert all(np.array_equal(prox[name], avg[name]) for name in avg)


@pytest.mark.parametrize("mu", [-0.1, float("nan"), float("inf")])
def test_an_impossible_mu_is_refused(mu):
    with pytest.raises(SettingsError, match="mu"):
        validated(fedprox.Config, {"mu": mu}, "the algorithm")
