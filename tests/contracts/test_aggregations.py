"""What every file of `shepherd/aggregations` keeps to, by the properties that it declares."""

import weakref
from dataclasses import replace

import numpy as np
import pytest
from tests.contracts.running import ROUNDS, found, resumed, run, same
from tests.quadratic import InProducts, Quadratic, bits, drawn, method, update_of

from shepherd import aggregations, plugins
from shepherd.config import PartTable
from shepherd.core import Adapter, Context, corner, moved, of_rank, padded, shapes_of
from shepherd.core.factor_gap import pairs
from shepherd.errors import AdapterError, FederationError, QuorumNotMet, ShepherdError
from shepherd.rounds import rounds, start

NAMES = found(aggregations)
pytestmark = pytest.mark.parametrize("name", NAMES)


def built(name, **keys):
    return plugins.aggregation(PartTable(name=name, **keys), NAMES)


def lossless(name):
    """The aggregation with those keys that decide how much is left out at their largest."""
    fields = plugins.module_of(plugins.AGGREGATION, name, NAMES).Config.model_fields
    return built(name, **{key: most for key, most in {"energy": 1.0}.items() if key in fields})


def updates(count=5):
    return [update_of(f"c{k}", k, weight=float(k + 1)) for k in range(count)]


RANK = 2
CONTEXT = Context(rank=RANK, root=update_of("root", 50).delta)


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
    everyone = {f"c{k}" for k in range(5)}
    assert len(set(combined.clients)) == len(combined.clients)
    assert set(combined.clients) <= everyone if aggregation.chooses else set(combined.clients) == everyone
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
    aggregation = lossless(name)
    state = state_of(aggregation)
    context = replace(CONTEXT, root=same_change[0].delta)
    got = outcome(aggregation, state, aggregation.combine(state, iter(same_change), context))
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
        root=Quadratic(asked.algorithm).root,
    )
    with pytest.raises(QuorumNotMet):
        next(loop)


@pytest.mark.parametrize(
    ("bad", "said"), [(np.nan, "is not finite"), (np.inf, "is not finite"), (1e30, "has a value of")]
)
def test_a_client_whose_update_is_not_finite_or_absurd_is_a_counted_failure(name, bad, said):
    asked = method(aggregation=built(name))

    class Broken(Quadratic):
        def run(self, broadcast, cohort):
            for update in super().run(broadcast, cohort):
                if update.client == "c1":
                    update = replace(update, delta=update.delta.times(bad))
                yield update

    def loop(federation, cohort):
        return rounds(
            asked,
            federation,
            start(asked, drawn(0), CONTEXT),
            until=1,
            select=lambda clients, round, seed: cohort,
            quorum=0.5,
            seed=0,
            context=CONTEXT,
            root=federation.root,
        )

    everyone = tuple(f"c{k}" for k in range(6))
    ranked = {"clients": 6, "rank": RANK}
    state, report = next(loop(Broken(asked.algorithm, **ranked), everyone))
    assert list(report.failures) == ["c1"]
    assert said in report.failures["c1"]
    without = next(loop(Quadratic(asked.algorithm, **ranked), tuple(c for c in everyone if c != "c1")))[0]
    assert same(state, without)


@pytest.mark.parametrize("weights", [(-1.0, 2.0), (np.nan, 1.0), (np.inf, 1.0), (0.0, 0.0)])
def test_weights_that_cannot_be_are_refused_by_the_clients_name(name, weights):
    aggregation = built(name)
    if aggregation.smallest_cohort > 1:
        pytest.skip("weights do not count in it")
    mine = [update_of(f"c{k}", k, weight=weight) for k, weight in enumerate(weights)]
    message = (
        "no update with a weight above zero" if not any(weights) else f"client c0 has weight {weights[0]:g}"
    )
    with pytest.raises(FederationError, match=message):
        aggregation.combine(state_of(aggregation), iter(mine), CONTEXT)


def test_an_update_of_other_names_or_shapes_is_refused_by_its_tensor(name):
    aggregation = built(name)
    if aggregation.smallest_cohort > 1:
        pytest.skip("it compares updates with each other alone")
    whole = update_of("c0", 0)
    first = min(whole.delta)
    more = {**whole.delta, "nose.lora_A.weight": whole.delta[first]}
    turned = {**whole.delta, first: whole.delta[first].T}
    for delta, tensor in ((more, "tensor nose.lora_A.weight"), (turned, first)):
        mine = [whole, replace(whole, clients=("c1",), delta=Adapter(delta))]
        with pytest.raises(ShepherdError, match=tensor):
            aggregation.combine(state_of(aggregation), iter(mine), CONTEXT)


def test_unequal_ranks_are_taken_or_refused(name):
    aggregation = built(name)
    if aggregation.smallest_cohort > 1:
        pytest.skip("a cohort of two is too small")
    whole = update_of("c0", 0)
    low = {n: corner(tensor, of_rank(n, tensor.shape, 1)) for n, tensor in update_of("c1", 1).delta.items()}
    mine = [whole, replace(whole, clients=("c1",), delta=Adapter(low))]
    state = state_of(aggregation)
    if aggregation.takes_ranks:
        combined = aggregation.combine(state, iter(mine), CONTEXT)
        assert shapes_of(combined.delta) == shapes_of(state.adapter)
    else:
        with pytest.raises(
            AdapterError, match=r'client c1 has rank 1 .* rank 2, .* set \[aggregation\] name = "'
        ):
            aggregation.combine(state, iter(mine), CONTEXT)


def test_it_trains_and_resumes_to_the_same_bits(name, tmp_path):
    asked = method(aggregation=built(name))
    kind = Quadratic if asked.aggregation.keeps_basis else InProducts
    federation = kind(asked.algorithm, clients=8, rank=RANK if asked.aggregation.side_rank else None)
    states = run(asked, federation)
    distances = [federation.distance(state.adapter) for state in (start(asked, drawn(0)), states[-1])]
    assert distances[1] < distances[0]
    for at in range(ROUNDS):
        assert same(resumed(asked, at, tmp_path / str(at), federation), states[-1])
