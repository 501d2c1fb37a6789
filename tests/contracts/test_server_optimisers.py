"""What every file of `shepherd/server_optimisers` keeps to."""

from dataclasses import replace

import numpy as np
import pytest
from tests.contracts.running import ROUNDS, found, resumed, run, same, table
from tests.quadratic import Quadratic, bits, drawn, method, update_of

from shepherd import plugins, server_optimisers
from shepherd.aggregations import mean
from shepherd.core import Adapter, Aggregation, Context, shapes_of
from shepherd.core.factor_gap import pairs
from shepherd.errors import SettingsError
from shepherd.rounds import start

NAMES = found(server_optimisers)
pytestmark = pytest.mark.parametrize("name", NAMES)


def built(name):
    return plugins.server_optimiser(table(name), NAMES)


def test_its_first_step_goes_along_the_update(name):
    asked = method(server=built(name))
    state, update = start(asked, drawn(0)), update_of("c0", 1)
    moved = asked.server.apply(state, update).adapter.plus(state.adapter, -1.0)
    along = sum(float(np.vdot(moved[n], update.delta[n])) for n in moved)
    assert along > 0


def test_it_moves_only_what_travelled_and_mutates_nothing(name):
    asked = method(server=built(name))
    state = start(asked, drawn(0))
    update = update_of("c0", 1)
    some = [n for n in update.delta if "lora_B" in n]
    part = replace(update, delta=Adapter({n: update.delta[n] for n in some}))
    then = bits(state.adapter), bits(part.delta)
    after = asked.server.apply(state, part)
    assert (bits(state.adapter), bits(part.delta)) == then
    for n in state.adapter:
        assert (after.adapter[n].tobytes() == state.adapter[n].tobytes()) == (n not in some)
    assert not any(tensor.flags.writeable for tensor in after.adapter.values())


def test_a_change_of_zero_stays_finite_and_its_layout_is_settled_at_the_start(name):
    asked = method(server=built(name))
    state = start(asked, drawn(0))
    still = replace(update_of("c0", 1), delta=drawn(0).times(0.0))
    after = asked.server.apply(state, still)
    assert all(np.isfinite(tensor).all() for tensor in after.adapter.values())
    sizes = [{k: p.nbytes for k, p in each.optimiser.items()} for each in (state, after)]
    assert sizes[0] == sizes[1]


def test_it_trains_and_resumes_to_the_same_bits(name, tmp_path):
    asked = method(server=built(name))
    federation = Quadratic(asked.algorithm)
    states = run(asked, federation)
    assert same(run(asked, Quadratic(asked.algorithm))[-1], states[-1])
    for at in range(ROUNDS):
        assert same(resumed(asked, at, tmp_path / str(at)), states[-1])


def test_one_that_needs_a_mean_is_refused_with_anything_else(name):
    needing = replace(built(name), needs_mean=True)
    with pytest.raises(SettingsError, match="requires a mean"):
        method(aggregation=Aggregation(combine=mean.mean, is_mean=False), server=needing)
    assert method(server=needing).server is needing


def test_one_that_does_not_move_by_the_aggregate_itself_is_refused_where_factors_are_made_anew(name):
    anew = Aggregation(combine=mean.mean, is_mean=False, keeps_basis=False)
    partial = replace(built(name), whole_step=False, needs_mean=False)
    with pytest.raises(
        SettingsError, match=r"factorises the sum of the products again .* set \[server\] name"
    ):
        method(aggregation=anew, server=partial)
    whole = replace(partial, whole_step=True)
    assert method(aggregation=anew, server=whole).server is whole


def test_factors_that_are_written_anew_have_the_same_products(name):
    asked = method(server=built(name))
    if asked.server.rebase is not None:
        assert not asked.server.whole_step
        context = Context(rank=2)
        for round in range(ROUNDS):
            state = replace(start(asked, drawn(round), context), round=round)
            after = asked.server.rebase(state, context)
            assert shapes_of(after) == shapes_of(state.adapter)
            assert not any(tensor.flags.writeable for tensor in after.values())
            for pair in pairs(after):
                due = state.adapter[pair.b] @ state.adapter[pair.a]
                np.testing.assert_allclose(after[pair.b] @ after[pair.a], due, rtol=1e-4, atol=1e-5)
