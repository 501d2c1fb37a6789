"""An audit of mechanisms whose epsilon is known: it lets the right one pass and catches each broken one.

Every canary is a client that pushes the adapter as far as it may in a direction of its own, in numpy alone.
"""

from dataclasses import replace

import numpy as np
import pytest
from tests.quadratic import chosen, method

from benchmarks import broken_mechanisms as broken
from shepherd.audit import estimate
from shepherd.core import (
    Adapter,
    ClientInfo,
    Context,
    Mechanism,
    Payload,
    Seeded,
    Spending,
    Transform,
    Turns,
    Update,
    seed_for,
)
from shepherd.privacy.accountant import epsilon
from shepherd.rounds import rounds, start
from shepherd.transforms import clip

SHAPES = {"layers.0.q_proj.lora_A.weight": (4, 300), "layers.0.q_proj.lora_B.weight": (300, 4)}
CANARIES, ROUNDS, NORM, NOISE, DELTA = 300, 4, 1.0, 4.0, 1e-5
PUSH = 50.0
"""Length of an update before it is clipped."""
FIRST = Adapter({name: np.zeros(shape, np.float32) for name, shape in SHAPES.items()})


def directions(rng):
    """A unit vector for each canary, (m, D)."""
    drawn = rng.standard_normal((CANARIES, sum(np.prod(shape) for shape in SHAPES.values())))
    return drawn / np.linalg.norm(drawn, axis=1, keepdims=True)


def as_adapter(vector):
    ends = np.cumsum([np.prod(shape) for shape in SHAPES.values()])[:-1]
    parts = np.split(vector.astype(np.float32), ends)
    return Adapter({name: part.reshape(SHAPES[name]) for name, part in zip(SHAPES, parts, strict=True)})


def flat(adapter):
    return np.concatenate([adapter[name].ravel() for name in SHAPES]).astype(float)


class Pushing:
    """Each client adds its own direction in every round."""

    def __init__(self, included, transform):
        self.pushes, self.transform = included, transform

    def clients(self):
        return [ClientInfo(name=name, examples=1) for name in self.pushes]

    def run(self, broadcast, cohort):
        for name in cohort:
            delta = as_adapter(PUSH * self.pushes[name])
            update = Update(round=broadcast.round, clients=(name,), delta=delta, weight=1.0)
            draws = Seeded(seed_for(broadcast.seed, name))
            yield self.transform.at_client(update, broadcast.transforms, draws, broadcast, Payload())[0]


def gaussian(norm=NORM, noise=NOISE):
    """The Gaussian mechanism as in McMahan et al. (2018), written down once more."""
    bound = clip.build(clip.Config(norm=norm))

    def on_server(update, state, draws):
        rng, count = draws.generator("noise"), len(update.clients)
        total = {
            name: count * mean.astype(float) + noise * norm * rng.standard_normal(mean.shape)
            for name, mean in update.delta.items()
        }
        delta = Adapter({name: (each / CANARIES).astype(np.float32) for name, each in total.items()})
        return replace(update, delta=delta), state

    return Transform(
        on_client=bound.on_client,
        on_arrival=bound.on_arrival,
        on_server=on_server,
        mechanism=Mechanism(spent=lambda how, count: Spending(noise=noise, sampling=how, steps=count)),
    )


def audited(transform, seed, taken_out=None):
    """Bounds of epsilon from one run of a mechanism with canaries of which half are clients."""
    rng = np.random.default_rng(seed)
    every, coins = directions(rng), rng.random(CANARIES) < 0.5
    included = {f"c{k:03d}": every[k] for k in np.flatnonzero(coins)}
    asked = method(transform=transform)
    done = rounds(
        asked,
        Pushing(included, transform),
        start(asked, FIRST),
        until=ROUNDS,
        select=chosen("all"),
        quorum=0.5,
        seed=seed,
        noise=Seeded(seed + 1),
        max_share=1.0,
    )
    *_, (state, _) = done
    adapter = state.adapter
    if taken_out is not None:
        adapter = broken.without_public_noise(taken_out, adapter, range(ROUNDS), Context())
    return estimate.bounds(every @ flat(adapter), coins, DELTA)


@pytest.fixture(scope="module")
def claimed():
    right = gaussian().mechanism
    return epsilon([right.spent(Turns(every=1), ROUNDS)], DELTA)


def test_the_right_mechanism_is_not_contradicted(claimed):
    found = [audited(gaussian(), seed) for seed in range(5)]
    assert all(each.one_run <= claimed and each.gaussian <= claimed for each in found)
    assert 1.0 < claimed < estimate.ceiling(150, 150, DELTA).one_run  # a perfect attack would contradict it


@pytest.mark.parametrize("breaks", [broken.without_noise, broken.without_clip])
def test_a_mechanism_without_its_noise_or_its_clip_is_caught(claimed, breaks):
    assert audited(breaks(gaussian()), 0).one_run > claimed


def test_noise_from_a_public_seed_is_caught_by_whoever_draws_it_again(claimed):
    assert audited(broken.from_public_seed(gaussian()), 0).one_run <= claimed
    assert audited(broken.from_public_seed(gaussian()), 0, taken_out=gaussian()).one_run > claimed
