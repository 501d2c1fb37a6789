"""SCAFFOLD against the algorithm as published, written out once more, and where it ends on quadratics."""

from dataclasses import replace

import numpy as np
import pytest
from tests.quadratic import Quadratic, chosen, drawn, method

from shepherd.algorithms import fedavg, scaffold
from shepherd.core import ClientInfo, Context, chain, seed_for
from shepherd.rounds import rounds, start
from shepherd.transforms import clip

CLIENTS, STEPS, RATE, ROUNDS, SEED = 4, 3, 0.1, 5, 11


def published(share):
    """Algorithm 1 of arXiv 1910.06378 with option II, eta_g = 1, in float64; x by tensor name, each round."""
    model = Quadratic(scaffold.build(scaffold.Config()), clients=CLIENTS, noise=0.0)
    x = {name: tensor.astype(float) for name, tensor in drawn(0).items()}
    c = {name: np.zeros_like(tensor) for name, tensor in x.items()}
    own = {info.name: {n: np.zeros_like(t) for n, t in x.items()} for info in model.infos}
    for round in range(ROUNDS):
        cohort = chosen("round_robin", share=share)(model.infos, round, 0)
        moved, changed = [], []
        for client in cohort:
            y = {name: tensor.copy() for name, tensor in x.items()}
            for _ in range(STEPS):
                for name in y:
                    grad = y[name] - model.targets[client][name]
                    y[name] = y[name] - RATE * (grad - own[client][name] + c[name])
            plus = {n: own[client][n] - c[n] + (x[n] - y[n]) / (STEPS * RATE) for n in x}
            moved.append({n: y[n] - x[n] for n in x})
            changed.append({n: plus[n] - own[client][n] for n in x})
            own[client] = plus
        weight = 1 / len(cohort)
        x = {n: x[n] + weight * sum(each[n] for each in moved) for n in x}
        c = {n: c[n] + len(cohort) / CLIENTS * weight * sum(each[n] for each in changed) for n in c}
        yield x, c


@pytest.mark.parametrize("share", [1.0, 0.5])
def test_each_round_is_the_published_update(share):
    asked = method(scaffold.build(scaffold.Config()))
    federation = Quadratic(asked.algorithm, clients=CLIENTS, steps=STEPS, rate=RATE, noise=0.0)
    federation.infos = [type(info)(name=info.name, examples=1) for info in federation.infos]  # equal weights
    loop = rounds(
        asked,
        federation,
        start(asked, drawn(0)),
        until=ROUNDS,
        select=chosen("round_robin", share=share),
        quorum=1.0,
        seed=seed_for(SEED),
        context=Context(clients=CLIENTS, share=share),
    )
    for (state, _), (x, c) in zip(loop, published(share), strict=True):
        for name in x:
            np.testing.assert_allclose(state.adapter[name], x[name], atol=5e-6)
            np.testing.assert_allclose(state.memory["control"][name], c[name], atol=2e-5)


CURVATURE = {"c0": 0.2, "c1": 1.0, "c2": 3.0, "c3": 0.5}


def optimum(federation):
    """The minimum of the mean of h_k ||w - target_k||^2 / 2: the mean of the targets, weighted by h_k."""
    total = sum(CURVATURE.values())
    return {
        name: sum(CURVATURE[c] * federation.targets[c][name].astype(float) for c in CURVATURE) / total
        for name in drawn(0)
    }


def distance(algorithm, share, rounds_=150, transform=None):
    """How far the run ends from the global minimum, with constant local rates and no noise."""
    asked = method(algorithm, transform=transform)
    federation = Quadratic(algorithm, transform, steps=10, rate=0.1, noise=0.0, curvature=CURVATURE)
    federation.infos = [ClientInfo(name=f"c{k}", examples=1) for k in range(CLIENTS)]
    loop = rounds(
        asked,
        federation,
        start(asked, drawn(0)),
        until=rounds_,
        select=chosen("uniform", share=share),
        quorum=1.0,
        seed=SEED,
        context=Context(clients=CLIENTS, share=share),
    )
    *_, (state, _) = loop
    best = optimum(federation)
    return max(float(np.max(np.abs(state.adapter[n] - best[n]))) for n in best)


@pytest.mark.parametrize("share", [1.0, 0.5])
def test_it_reaches_the_global_minimum_where_fedavg_does_not(share):
    assert distance(scaffold.build(scaffold.Config()), share) < 1e-4
    assert distance(fedavg.ALGORITHM, share) > 0.1


def test_after_a_clip_it_would_end_elsewhere():
    """Under a clip c is not the mean of the c_k."""
    algorithm = scaffold.build(scaffold.Config())
    unchecked = replace(algorithm, needs_exact=False)
    short = chain(clip.build(clip.Config(norm=5.0)))
    assert distance(algorithm, 1.0) < 1e-4
    assert distance(unchecked, 1.0, transform=short) > 0.01


def test_the_servers_control_is_the_mean_of_the_clients():
    """So it stays when only some are asked, which is what equal weights are needed for."""
    asked = method(scaffold.build(scaffold.Config()))
    federation = Quadratic(asked.algorithm, clients=CLIENTS)
    federation.infos = [type(info)(name=info.name, examples=1) for info in federation.infos]
    loop = rounds(
        asked,
        federation,
        start(asked, drawn(0)),
        until=7,
        select=chosen("uniform", share=0.5),
        quorum=1.0,
        seed=SEED,
        context=Context(clients=CLIENTS, share=0.5),
    )
    for state, _ in loop:
        for name, control in state.memory["control"].items():
            mean = sum(memory[name] for memory in federation.memories.values() if memory) / CLIENTS
            np.testing.assert_allclose(control, mean, atol=1e-5)
