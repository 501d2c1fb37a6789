"""What every file of `shepherd/aggregations` keeps to, by the properties that it declares."""

import weakref
from dataclasses import replace

import numpy as np
import pytest
from tests.contracts.running import ROUNDS, found, resumed, run, same, table
from tests.quadratic import Quadratic, bits, drawn, method, update_of

from shepherd import aggregations, plugins
from shepherd.core import Context, moved, padded, shapes_of
from shepherd.core.factor_gap import pairs
from shepherd.errors import QuorumNotMet
from shepherd.rounds import rounds, start

NAMES = found(aggregations, "trimmed_mean")
pytestmark = pytest.mark.parametrize("name", NAMES)


def built(name):
    return plugins.aggregation(table(name), NAMES)


def updates(count=5):
    return [update_of(f"c{k}", k, weight=float(k + 1)) for k in range(count)]


CONTEXT = Context(rank=2)


def state_of(aggregation):
    return start(method(aggregation=aggregation), drawn(0), CONTEXT)


def outcome(aggregation, state, combined):
    """What must be the same: the change of each tensor, or, where the basis is a new one, of each product."""
    if aggregation.keeps_basis:
        return combined.delta
    after = moved(state, combined.delta).adapter
    return {pair.a: after[pair.b] @ after[pair.a] for pair in pairs(after)}


def test_the_same_updates_give_the_same_bits_and_their_order_changes_only_the_rounding(name):
    aggregation = built(name)
    state = state_of(aggregation)
    one, again, turned = (
        aggregation.combine(state, iter(order), CONTEXT) for order in (updates(), updates(), updates()[::-1])
    )
    assert bits(one.delta) == bits(again.delta)
    first, other = (outcome(aggregation, state, each) for each in (one, turned))
    close = {"rtol": 2e-7, "atol": 1e-9} if aggregation.keeps_basis else {"rtol": 1e-4, "atol": 1e-5}
    for tensor in first:
        np.testing.assert_allclose(first[tensor], other[tensor], **close)


def test_it_takes_every_update_and_says_whose_they_were(name):
    given = iter(updates())
    aggregation = built(name)
    combined = aggregation.combine(state_of(aggregation), given, CONTEXT)
    assert next(given, None) is None
    assert sorted(combined.clients) == [f"c{k}" for k in range(5)]
    assert combined.round == 0
    assert shapes_of(combined.delta) == shapes_of(state_of(aggregation).adapter)
    assert not any(tensor.flags.writeable for tensor in combined.delta.values())


def test_nothing_is_mutated(name):
    mine = updates()
    then = [bits(update.delta) for update in mine]
    aggregation = built(name)
    aggregation.combine(state_of(aggregation), iter(mine), CONTEXT)
    assert [bits(update.delta) for update in mine] == then


def test_updates_that_are_all_the_same_come_back(name):
    same_change = [replace(update_of(f"c{k}", 7), weight=2.0) for k in range(5)]
    aggregation = built(name)
    state = state_of(aggregation)
    got = outcome(aggregation, state, aggregation.combine(state, iter(same_change), CONTEXT))
    whole = replace(same_change[0], delta=padded(same_change[0].delta, aggregation.side_rank))
    due = outcome(aggregation, state, whole)
    for tensor in due:
        np.testing.assert_allclose(
            got[tensor], due[tensor], rtol=1e-6, atol=0 if aggregation.keeps_basis else 1e-5
        )


def test_it_streams_or_says_that_it_does_not(name):
    made, alive = [], []

    def streamed():
        for update in updates(12):
            fresh = replace(update, delta=update.delta.times(1.0))
            del update
            made.append(weakref.ref(next(iter(fresh.delta.values()))))
            yield fresh
            del fresh
            alive.append(sum(ref() is not None for ref in made))

    aggregation = built(name)
    aggregation.combine(state_of(aggregation), streamed(), CONTEXT)
    assert (max(alive) == 0) == aggregation.streams


def test_it_is_the_weighted_mean_or_says_that_it_is_not(name):
    aggregation, mine = built(name), updates()
    combined = aggregation.combine(state_of(aggregation), iter(mine), CONTEXT)
    averages = {
        n: np.average([u.delta[n].astype(float) for u in mine], axis=0, weights=[u.weight for u in mine])
        for n in mine[0].delta
    }
    assert aggregation.is_mean == all(
        combined.delta[n].shape == averages[n].shape
        and np.allclose(combined.delta[n], averages[n], rtol=1e-5, atol=1e-6)
        for n in averages
    )


def test_of_a_mean_one_client_comes_back_as_it_was(name):
    aggregation, mine = built(name), updates(1)
    if aggregation.is_mean:
        combined = aggregation.combine(state_of(aggregation), iter(mine), CONTEXT)
        assert bits(combined.delta) == bits(mine[0].delta)


def test_fewer_updates_than_its_smallest_cohort_are_no_round(name):
    aggregation = built(name)
    few = aggregation.smallest_cohort - 1

    class Few(Quadratic):
        def run(self, broadcast, cohort):
            return super().run(broadcast, cohort[:few])

    asked = method(aggregation=aggregation)
    loop = rounds(
        asked,
        Few(asked.algorithm, clients=6),
        start(asked, drawn(0)),
        until=1,
        select=lambda clients, round, seed: tuple(info.name for info in clients),
        quorum=0.01,
        seed=0,
    )
    with pytest.raises(QuorumNotMet):
        next(loop)


def test_it_trains_and_resumes_to_the_same_bits(name, tmp_path):
    asked = method(aggregation=built(name))
    federation = Quadratic(asked.algorithm)
    states = run(asked, federation)
    distances = [
        sum(state.adapter.plus(target, -1.0).norm() for target in federation.targets.values())
        for state in (start(asked, drawn(0)), states[-1])
    ]
    assert distances[1] < distances[0]
    for at in range(ROUNDS):
        assert same(resumed(asked, at, tmp_path / str(at)), states[-1])
