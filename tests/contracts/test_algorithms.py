"""What every file of `shepherd/algorithms` keeps to. A new file is tested without touching this one."""

import numpy as np
import pytest
from tests.contracts.running import ROUNDS, found, resumed, run, same, table
from tests.quadratic import Quadratic, bits, drawn, method

from shepherd import algorithms, plugins
from shepherd.core import Adapter, Broadcast, ClientInfo, ServerState, chain, seed_for
from shepherd.errors import SettingsError
from shepherd.rounds import start
from shepherd.rounds.acceptance import check
from shepherd.rounds.loop import next_broadcast
from shepherd.transforms import clip

STACKED = 1e-6  # relative and absolute: float32 sums in another order
NAMES = found(algorithms)
pytestmark = pytest.mark.parametrize("name", NAMES)


def built(name):
    return plugins.algorithm(table(name), NAMES)


def cohort_updates(algorithm, clients=5):
    """The state after two rounds, the next broadcast, and the updates of it."""
    federation = Quadratic(algorithm, clients=clients)
    state = run(method(algorithm), federation, until=2)[-1]
    broadcast = next_broadcast(method(algorithm), state, seed_for(0, "again"))
    return state, broadcast, list(federation.run(broadcast, [f"c{k}" for k in range(clients)]))


def leaving(algorithm, state: ServerState):
    return [n for n in state.adapter if algorithm.leaves(n, state.round)]


def test_it_trains(name):
    algorithm = built(name)
    federation = Quadratic(algorithm)
    loss = [
        sum(
            float(np.sum((s.adapter[n] - t[n]) ** 2))
            for t in federation.targets.values()
            for n in sorted({n for round in range(2) for n in s.adapter if algorithm.leaves(n, round)})
        )
        for s in (start(method(algorithm), drawn(0)), *run(method(algorithm), federation, until=8))
    ]
    assert loss[-1] < 0.9 * loss[0]


def test_what_does_not_leave_never_moves_at_the_server(name):
    algorithm = built(name)
    before = start(method(algorithm), drawn(0))
    for state in run(method(algorithm), Quadratic(algorithm)):
        for tensor in set(state.adapter) - set(leaving(algorithm, before)):  # some take turns by round
            assert state.adapter[tensor].tobytes() == before.adapter[tensor].tobytes()
        before = state


def test_the_same_seed_gives_the_same_bits_and_another_does_not(name):
    algorithm = built(name)
    one, two, other = (run(method(algorithm), Quadratic(algorithm), seed=seed)[-1] for seed in (3, 3, 4))
    assert same(one, two)
    assert not same(one, other)


@pytest.mark.parametrize("at", range(ROUNDS))
def test_resumed_at_any_round_the_bits_are_the_same(name, at, tmp_path):
    algorithm = built(name)
    straight = run(method(algorithm), Quadratic(algorithm))[-1]
    assert same(resumed(method(algorithm), at, tmp_path), straight)


def test_nothing_is_mutated(name):
    algorithm = built(name)
    state, broadcast, updates = cohort_updates(algorithm)
    everything = (state.adapter, broadcast.adapter, broadcast.extra, *(u.delta for u in updates))
    then = [bits(a) for a in everything]
    federation = Quadratic(algorithm, clients=5)
    list(federation.run(broadcast, [f"c{k}" for k in range(5)]))
    assert then == [bits(a) for a in everything]


def test_the_client_half_works_on_stacked_arrays(name):
    """Row k of (K, ...) is client k: three at once are the same as one after another, twice."""
    algorithm = built(name)
    broadcast = next_broadcast(method(algorithm), start(method(algorithm), drawn(0)), 0)
    cohort = [f"c{k}" for k in range(6)]
    apart, stacked = Quadratic(algorithm, clients=6), Quadratic(algorithm, clients=6, stack=3)
    for _ in range(2):
        alone, beside = list(apart.run(broadcast, cohort)), list(stacked.run(broadcast, cohort))
        for one, two in zip(alone, beside, strict=True):
            for mine, other in ((one.delta, two.delta), (one.extra, two.extra)):
                for tensor in mine:
                    np.testing.assert_allclose(mine[tensor], other[tensor], rtol=STACKED, atol=STACKED)


def test_what_it_sends_is_what_the_round_expects(name):
    algorithm = built(name)
    state, broadcast, updates = cohort_updates(algorithm)
    for update in updates:
        expected = algorithm.expects(broadcast, ClientInfo(name=update.client, examples=1))
        algorithm.accept(check(update, expected, broadcast.round), {"steps": 3})  # raises UpdateRefused
        assert set(expected.delta) == set(leaving(algorithm, state))


def test_it_works_under_clip_and_the_round_moves_no_further_or_is_refused(name):
    algorithm = built(name)
    short = chain(clip.build(clip.Config(norm=0.05)))
    if algorithm.needs_exact:
        with pytest.raises(SettingsError, match="remove the transform"):
            method(algorithm, transform=short)
        return
    states = run(method(algorithm, transform=short), Quadratic(algorithm, short))
    before: Adapter = drawn(0)
    for state in states:
        moved = state.adapter.plus(before, -1.0).norm()
        assert 0 < moved <= 0.05 * (1 + 1e-5)
        before = state.adapter


def test_a_visit_starts_with_the_names_of_the_broadcast(name):
    algorithm = built(name)
    broadcast = Broadcast(round=0, adapter=drawn(0), seed=0)
    begun = algorithm.start(broadcast, Adapter(), ClientInfo(name="c0", examples=1))
    assert set(begun) == set(drawn(0))
