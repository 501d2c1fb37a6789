"""Audits of the package's own mechanisms: each lets the right one pass, and catches each broken twin of it.

At client level, every canary is a client that pushes the adapter as far as it may in a direction of its own,
in numpy alone; at example level, it is an example of a client, in one step of the trainer on a tiny base.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import pytest
from tests.model import bases
from tests.quadratic import chosen, method

from benchmarks import broken_mechanisms as broken
from shepherd.algorithms import fedavg
from shepherd.audit import estimate
from shepherd.core import (
    Adapter,
    Broadcast,
    ClientInfo,
    Context,
    Failure,
    Mechanism,
    Payload,
    Poisson,
    Seeded,
    Spending,
    Transform,
    Turns,
    Update,
    seed_for,
)
from shepherd.federation.summed import Summed
from shepherd.privacy.accountant import epsilon
from shepherd.rounds import rounds, start
from shepherd.settings import TuningTable
from shepherd.training import tune
from shepherd.training.example_privacy import ExamplePrivacy
from shepherd.training.local import DEFAULT_TRAINING, LocalTraining
from shepherd.training.optimisers import sgd
from shepherd.transforms import gaussian, gaussian_adaptive, gaussian_correlated, skellam

SHAPES = {"layers.0.q_proj.lora_A.weight": (4, 300), "layers.0.q_proj.lora_B.weight": (300, 4)}
SIZE = sum(int(np.prod(shape)) for shape in SHAPES.values())
CANARIES, NOISE, DELTA = 300, 4.0, 1e-5
PUSH = 50.0
"""Length of an update before it is clipped."""
FIRST = Adapter({name: np.zeros(shape, np.float32) for name, shape in SHAPES.items()})


def as_adapter(vector):
    ends = np.cumsum([np.prod(shape) for shape in SHAPES.values()])[:-1]
    parts = np.split(vector.astype(np.float32), ends)
    return Adapter({name: part.reshape(SHAPES[name]) for name, part in zip(SHAPES, parts, strict=True)})


def flat(adapter):
    return np.concatenate([adapter[name].ravel() for name in sorted(adapter)]).astype(float)


# --- at client level


@dataclass
class Pushing:
    """Clients of which those that a coin included add their own direction in every round that asks them.

    The others are away or, where the guarantee is of those that take part, send zeros.
    """

    directions: np.ndarray
    coins: np.ndarray
    transform: Transform
    away: bool

    def clients(self):
        return [ClientInfo(name=f"c{k:03d}", examples=1) for k in range(CANARIES)]

    def run(self, broadcast, cohort):
        for name in cohort:
            place = int(name[1:])
            if self.away and not self.coins[place]:
                yield Failure(client=name, reason="it is away")
                continue
            delta = as_adapter(PUSH * self.coins[place] * self.directions[place])
            update = Update(round=broadcast.round, clients=(name,), delta=delta, weight=1.0)
            draws = Seeded(seed_for(broadcast.seed, name))
            yield self.transform.at_client(update, broadcast.transforms, draws, broadcast, Payload())[0]


@dataclass(frozen=True)
class Audited:
    """A mechanism of the package, and the rounds that it is audited in."""

    transform: Transform
    rounds: int = 4
    every: int = 1
    """A client is asked in one of this many rounds."""
    factor: tuple[float, ...] = (1.0,)
    """First column of C, where the rounds' noise is C^-1 Z."""
    summed: bool = False
    """Whether the server gets the sum of the updates alone."""

    @property
    def context(self) -> Context:
        return Context(clients=CANARIES, share=1 / self.every)

    def claimed(self) -> float:
        return epsilon([self.transform.mechanism.spent(Turns(every=self.every), self.rounds)], DELTA)

    def bounds(self, seed: int, taken_out: Transform | None = None):
        """Bounds of epsilon from one run with canaries of which a coin includes half.

        Args:
            taken_out: the mechanism whose noise comes from a seed that everybody knows.
        """
        rng = np.random.default_rng(seed)
        drawn = rng.standard_normal((CANARIES, SIZE))
        directions = drawn / np.linalg.norm(drawn, axis=1, keepdims=True)
        coins = rng.random(CANARIES) < 0.5
        asked = method(transform=self.transform)
        pushing = Pushing(directions, coins, self.transform, away=not self.summed)
        done = rounds(
            asked,
            Summed(federation=pushing, ring_bits=64) if self.summed else pushing,
            start(asked, FIRST, self.context),
            until=self.rounds,
            select=chosen("round_robin", share=1 / self.every) if self.every > 1 else chosen("all"),
            quorum=0.1,
            seed=seed,
            noise=Seeded(seed + 1),
            max_share=1.0,
        )
        adapters = [FIRST, *(state.adapter for state, _ in done)]
        if taken_out is not None:
            adapters = [
                broken.without_public_noise(taken_out, adapter, range(number), self.context)
                for number, adapter in enumerate(adapters)
            ]
        released = np.diff([flat(adapter) for adapter in adapters], axis=0)  # (T, D)
        return bounds_of(self.scores(directions, released), coins)

    def scores(self, directions, released):
        """How far the releases of all rounds went along each direction, (m,): the filter that is matched to
        the noise, in the rounds that asked the client."""
        whole = np.zeros((len(released), len(released)))
        for lag, value in enumerate(self.factor):
            whole += value * np.eye(len(released), k=-lag)
        along = directions @ (whole.T @ whole @ released).T  # (m, T)
        turn = (np.arange(CANARIES) * self.every // CANARIES)[:, None]
        return np.where(np.arange(len(released)) % self.every == turn, along, 0.0).sum(axis=1)


def bounds_of(scores, coins):
    return estimate.bounds(scores, coins, DELTA)


def client_noise(honest: int = CANARIES, norm: float = 1.0, noise: float = NOISE) -> Transform:
    return skellam.build(skellam.Config(norm=norm, noise=noise, honest=honest, bits=12))


BANDS = 4
RIGHT = {
    "gaussian": Audited(gaussian.build(gaussian.Config(noise=NOISE))),
    "gaussian_adaptive": Audited(gaussian_adaptive.build(gaussian_adaptive.Config(noise=NOISE))),
    "gaussian_correlated": Audited(
        gaussian_correlated.build(gaussian_correlated.Config(noise=NOISE, bands=BANDS)),
        rounds=2 * BANDS,
        every=BANDS,
        factor=tuple(gaussian_correlated.coefficients(BANDS).tolist()),
    ),
    "skellam": Audited(client_noise(), summed=True),
}


def any_length(mechanism: Transform) -> Transform:
    """The adaptive mechanism at clients that do not clip, with a server that takes what they send."""
    assert mechanism.mechanism is not None
    return replace(
        mechanism,
        on_client=lambda update, public, draws: mechanism.on_client(update, {"norm": np.array(1e6)}, draws),
        on_arrival=lambda update, state: replace(update, weight=1.0, metrics={}),
        mechanism=Mechanism(spent=mechanism.mechanism.spent),
    )


def stale(first: float) -> Transform:
    """An adaptive mechanism whose clip grows, and whose noise is still that of the first norm."""
    config = gaussian_adaptive.Config(noise=NOISE, norm=first, quantile=0.99, rate=3.0)
    right = gaussian_adaptive.build(config)

    def on_server(update, state, draws):
        update, after = right.on_server(update, {**state, "norm": np.array(first)}, draws)
        return update, {**after, "norm": after["norm"] * state["norm"] / first}

    return replace(right, on_server=on_server)


def claims_as_right(mechanism: Transform) -> Transform:
    return replace(mechanism, mechanism=RIGHT["skellam"].transform.mechanism)


BROKEN: dict[str, tuple[str, Callable[[Transform], Transform]]] = {
    "gaussian without noise": ("gaussian", broken.without_noise),
    "gaussian without clip": ("gaussian", broken.without_clip),
    "adaptive without noise": ("gaussian_adaptive", broken.without_noise),
    "adaptive without clip": ("gaussian_adaptive", any_length),
    "adaptive with the noise of its first norm": ("gaussian_adaptive", lambda right: stale(0.01)),
    "correlated without noise": ("gaussian_correlated", broken.without_noise),
    "correlated without clip": ("gaussian_correlated", broken.without_clip),
    "skellam without noise": ("skellam", broken.without_client_noise),
    "skellam without clip": (
        "skellam", lambda right: claims_as_right(client_noise(norm=PUSH, noise=NOISE / PUSH))
    ),
    "skellam with too small shares": (
        "skellam", lambda right: claims_as_right(client_noise(honest=400 * CANARIES))
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", RIGHT)
def test_the_right_mechanism_is_not_contradicted(name):
    right = RIGHT[name]
    found = [right.bounds(seed) for seed in (1, 2)]
    claimed = right.claimed()
    assert all(each.one_run <= claimed and each.gaussian <= claimed for each in found)
    assert 1.0 < claimed < bounds_of(np.arange(CANARIES), np.arange(CANARIES) >= 150).one_run
    assert max(each.gaussian for each in found) > 0.1  # an attack that sees something


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_twin_is_caught(name):
    whose, breaks = BROKEN[name]
    twin = replace(RIGHT[whose], transform=breaks(RIGHT[whose].transform))
    assert twin.claimed() == RIGHT[whose].claimed()
    assert twin.bounds(0).one_run > twin.claimed()


@pytest.mark.parametrize("name", ["gaussian", "gaussian_correlated"])
def test_noise_from_a_public_seed_is_caught_by_whoever_draws_it_again(name):
    right = RIGHT[name]
    twin = replace(right, transform=broken.from_public_seed(right.transform))
    assert twin.bounds(0).one_run <= twin.claimed()
    assert twin.bounds(0, taken_out=right.transform).one_run > twin.claimed()


# --- at example level


EXAMPLES, STEP_NOISE = 150, 2.0
SGD = LocalTraining(sgd.build(sgd.Config()), DEFAULT_TRAINING.objective)


@dataclass
class Steps:
    """Steps of the trainer with a rate of 1, so that what a client sends is the released gradient."""

    base: bases.Base
    sent: Broadcast

    def released(self, privacy: ExamplePrivacy | None, *batches: list[int]) -> list[np.ndarray]:
        """What each client releases after one step on its batch."""
        visits = [
            tune.Visit(
                client="c",
                data=DATA,
                batches=[np.array(batch, np.int64)],
                seed=1,
                expected_batch=float(EXAMPLES) if privacy else 1.0,
            )
            for batch in batches
        ]
        table = TuningTable.model_validate({"clip_norm": 0.0})
        how = {"learning_rate": 1.0, "training": SGD, "privacy": privacy}
        made = bases.tuned(self.base, self.sent, fedavg.ALGORITHM, visits, table, **how)
        return [-flat(each.delta) for each in made]


DATA = bases.tokens(9, [6] * EXAMPLES)


@pytest.fixture(scope="module")
def steps(llama):
    return Steps(llama, Broadcast(round=0, adapter=bases.random_adapter(llama, 5), seed=0))


@pytest.fixture(scope="module")
def gradients(steps):
    """The gradient of each example, (m, P)."""
    return np.array([each for k in range(EXAMPLES) for each in steps.released(None, [k])])


def audited_step(steps, gradients, privacy, seed, *, taken_out=False, ridge=0.0):
    """Bounds of epsilon from one step in which a coin has included each example.

    The score is the least squares estimate of each coin from the released sum; with 4 `STEP_NOISE`^2 as the
    ridge, it is the best linear one where the noise is what it should be.
    """
    coins = np.random.default_rng(seed).random(EXAMPLES) < 0.5
    (seen,) = steps.released(privacy, np.flatnonzero(coins).tolist())
    if taken_out:
        seen = seen - steps.released(privacy, [])[0]
    alone = gradients / np.linalg.norm(gradients, axis=1, keepdims=True)
    total = seen * EXAMPLES / privacy.norm - (alone.sum(axis=0) / 2 if ridge else 0.0)
    return bounds_of(np.linalg.solve(alone @ alone.T + ridge * np.eye(EXAMPLES), alone @ total), coins)


def protected(gradients, seed=0, clip=1.0, draws=None):
    """DP-SGD that clips each example to a hundredth; `clip` is how much longer than the noise is for."""
    norm = float(np.linalg.norm(gradients, axis=1).min()) / 100
    return ExamplePrivacy(norm=clip * norm, noise=STEP_NOISE / clip, draws=draws or Seeded(seed))


@pytest.fixture(scope="module")
def claimed_by_step():
    return epsilon([Spending(noise=STEP_NOISE, sampling=Poisson(chance=1.0), steps=1)], DELTA)


def test_a_step_of_dp_sgd_is_not_contradicted(steps, gradients, claimed_by_step):
    found = [
        audited_step(steps, gradients, protected(gradients, seed), seed, ridge=ridge)
        for seed in range(3)
        for ridge in (0.0, 4 * STEP_NOISE**2)
    ]
    assert all(each.one_run <= claimed_by_step and each.gaussian <= claimed_by_step for each in found)
    assert 1.0 < claimed_by_step < bounds_of(np.arange(EXAMPLES), np.arange(EXAMPLES) >= 75).one_run


@pytest.mark.parametrize(
    "how", [{"draws": broken.Silent()}, {"clip": 1e4}], ids=["without noise", "without clip"]
)
def test_a_step_without_its_noise_or_its_clip_is_caught(steps, gradients, claimed_by_step, how):
    assert audited_step(steps, gradients, protected(gradients, **how), 0).one_run > claimed_by_step


def test_a_step_with_noise_from_a_public_seed_is_caught(steps, gradients, claimed_by_step):
    """The noise of an empty batch is all that is released, and is the same again."""
    public = protected(gradients)
    assert audited_step(steps, gradients, public, 0).one_run <= claimed_by_step
    assert audited_step(steps, gradients, public, 0, taken_out=True).one_run > claimed_by_step
