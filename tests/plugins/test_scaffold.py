"""The SCAFFOLD plug-in against the algorithm as published, written out once more on the quadratic model."""

import numpy as np
import pytest

from shepherd.core import Context, seed_for
from shepherd.rounds import rounds, start
from tests.plugins import scaffold
from tests.quadratic import Quadratic, chosen, drawn, method

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
