"""What every file of `shepherd/algorithms` keeps to. A new file is tested without touching this one."""

import weakref

import numpy as np
import pytest
from tests.quadratic import Quadratic, bits, drawn

from shepherd import algorithms, plugins
from shepherd.checkpoint import Checkpoint, latest, load, save
from shepherd.config import PartTable
from shepherd.core import Adapter, chain, seed_for
from shepherd.rounds import blank, check, rounds, start
from shepherd.select import uniform
from shepherd.transforms import clip

ROUNDS = 4
STACKED = 1e-6  # relative and absolute: float32 sums in another order
pytestmark = pytest.mark.parametrize("name", plugins.names(algorithms))


def built(name):
    return plugins.algorithm(PartTable(name=name))


def module(name):
    return plugins._module(algorithms, "algorithm", name)


def run(algorithm, federation, state=None, *, until=ROUNDS, transform=None, seed=3):
    """Every state of a run with half of the clients a round."""
    transform = transform or chain()
    state = state or start(algorithm, transform, drawn(0))
    loop = rounds(
        algorithm,
        federation,
        transform,
        state,
        until=until,
        select=lambda clients, round, seed: uniform(clients, 0.5, round, seed),
        quorum=1.0,
        seed=seed,
    )
    return [state for state, _ in loop]


def same(one, two):
    """The same bits in everything that a checkpoint holds."""
    return bits(one.adapter) == bits(two.adapter) and {k: bits(a) for k, a in one.memory.items()} == {
        k: bits(a) for k, a in two.memory.items()
    }


def cohort_updates(algorithm, clients=5):
    """The state after a round, and the updates of the next one."""
    federation = Quadratic(algorithm, clients=clients)
    state = run(algorithm, federation, until=1)[-1]
    broadcast = algorithm.broadcast(state, seed_for(0, "again"))
    return state, list(federation.run(broadcast, [f"c{k}" for k in range(clients)]))


def test_it_trains(name):
    algorithm = built(name)
    federation = Quadratic(algorithm)
    loss = [
        sum(float(np.sum((s.adapter[n] - t[n]) ** 2)) for t in federation.targets.values() for n in t)
        for s in run(algorithm, federation, until=8)
    ]
    assert loss[-1] < 0.9 * loss[0]


def test_the_same_seed_gives_the_same_bits_and_another_does_not(name):
    algorithm = built(name)
    one, two, other = (run(algorithm, Quadratic(algorithm), seed=seed)[-1] for seed in (3, 3, 4))
    assert same(one, two)
    assert not same(one, other)


@pytest.mark.parametrize("at", range(ROUNDS))
def test_resumed_at_any_round_the_bits_are_the_same(name, at, tmp_path):
    algorithm = built(name)
    straight = run(algorithm, Quadratic(algorithm))[-1]
    before = Quadratic(algorithm)
    stopped = [start(algorithm, chain(), drawn(0)), *run(algorithm, before, until=at)][-1]
    save(tmp_path, Checkpoint(state=stopped, clients=before.memories), keep=1)
    saved = load(latest(tmp_path))
    after = Quadratic(algorithm)
    after.memories = dict(saved.clients)
    assert same(run(algorithm, after, saved.state)[-1], straight)


def test_the_order_of_updates_changes_only_the_rounding(name):
    algorithm = built(name)
    state, updates = cohort_updates(algorithm)
    one, again, turned = (
        algorithm.apply(state, algorithm.aggregate(state, iter(order)))
        for order in (updates, updates, updates[::-1])
    )
    assert same(one, again)
    for tensor in one.adapter:
        np.testing.assert_allclose(one.adapter[tensor], turned.adapter[tensor], rtol=2e-7, atol=1e-9)


def test_nothing_is_mutated(name):
    algorithm = built(name)
    state, updates = cohort_updates(algorithm)
    broadcast = algorithm.broadcast(state, 0)
    then = [bits(a) for a in (state.adapter, broadcast.adapter, *(u.delta for u in updates))]
    after = algorithm.apply(state, algorithm.aggregate(state, iter(updates)))
    now = [bits(a) for a in (state.adapter, broadcast.adapter, *(u.delta for u in updates))]
    assert then == now
    assert after is not state
    assert not any(tensor.flags.writeable for tensor in after.adapter.values())


def test_one_client_comes_back_as_it_was(name):
    algorithm = built(name)
    state, updates = cohort_updates(algorithm)
    merged = algorithm.aggregate(state, iter(updates[:1]))
    assert bits(merged.delta) == bits(updates[0].delta)
    assert (merged.count, merged.round) == (1, state.round)


def test_it_streams_or_says_that_it_does_not(name):
    algorithm, made, alive = built(name), [], []
    state = start(algorithm, chain(), drawn(0))
    broadcast = algorithm.broadcast(state, 0)

    def updates():
        source = Quadratic(algorithm, clients=12).run(broadcast, [f"c{k}" for k in range(12)])
        for update in source:
            made.append(weakref.ref(next(iter(update.delta.values()))))
            yield update
            del update
            alive.append(sum(ref() is not None for ref in made))

    algorithm.aggregate(state, updates())
    assert (max(alive) == 0) == getattr(module(name), "STREAMS", True)


def test_the_client_half_works_on_stacked_arrays(name):
    """Row k of (K, ...) is client k: three at once are the same as one after another."""
    algorithm = built(name)
    broadcast = algorithm.broadcast(algorithm.init(drawn(0)), 0)
    cohort = [f"c{k}" for k in range(6)]
    apart = list(Quadratic(algorithm, clients=6).run(broadcast, cohort))
    stacked = list(Quadratic(algorithm, clients=6, stack=3).run(broadcast, cohort))
    for one, two in zip(apart, stacked, strict=True):
        for tensor in one.delta:
            np.testing.assert_allclose(one.delta[tensor], two.delta[tensor], rtol=STACKED, atol=STACKED)


def test_what_it_sends_is_what_the_round_expects(name):
    algorithm = built(name)
    state, updates = cohort_updates(algorithm)
    expected = blank(algorithm, chain(), algorithm.broadcast(state, 0))
    for update in updates:
        check(update, expected)  # raises UpdateRefused
    assert set(expected.delta) == {n for n in state.adapter if algorithm.trainable(n, state.round)}


def test_it_works_under_clip_and_the_round_moves_no_further(name):
    algorithm = built(name)
    short = chain(clip.build(clip.Config(norm=0.05)))
    states = run(algorithm, Quadratic(algorithm, short), transform=short)
    before: Adapter = drawn(0)
    for state in states:
        moved = state.adapter.plus(before, -1.0).norm()
        assert 0 < moved <= 0.05 * (1 + 1e-5)
        before = state.adapter
