import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.core.test_factor_gap import SHAPES, layout, stacked
from tests.quadratic import Quadratic, bits, chosen, drawn, method

from shepherd.aggregations import mean
from shepherd.algorithms import ffa_lora
from shepherd.core import Adapter, Aggregation, Algorithm, Context, ServerOptimiser, Transform
from shepherd.core.factor_gap import pairs
from shepherd.errors import SettingsError
from shepherd.rounds import rounds, start
from shepherd.server_optimisers import fedsvd, sgd

FFA = ffa_lora.build(ffa_lora.Config())
SEEDS = st.integers(0, 2**32)


def products(adapter):
    return {pair.a: adapter[pair.b].astype(float) @ adapter[pair.a] for pair in pairs(adapter)}


def run(server, until=4, transform=None, **keys):
    asked = method(FFA, server=server, transform=transform)
    loop = rounds(
        asked,
        Quadratic(FFA),
        start(asked, drawn(0)),
        until=until,
        select=chosen("all"),
        quorum=1.0,
        seed=0,
        context=Context(rank=2),
        **keys,
    )
    return list(loop)


@given(SHAPES, SEEDS)
def test_the_products_stay_and_a_has_orthonormal_rows(shapes, seed):
    adapter = drawn(seed, layout(shapes))
    new = fedsvd.rebased(adapter)
    for pair in pairs(adapter):
        due = adapter[pair.b].astype(float) @ adapter[pair.a]
        np.testing.assert_allclose(new[pair.b].astype(float) @ new[pair.a], due, rtol=1e-5, atol=1e-5)
        rank, width = adapter[pair.a].shape
        gram = new[pair.a].astype(float) @ new[pair.a].T
        np.testing.assert_allclose(
            gram, np.diag([1.0] * min(rank, width) + [0.0] * max(0, rank - width)), atol=1e-6
        )
        singular = np.linalg.norm(new[pair.b].astype(float), axis=0)
        count = min(len(singular), *due.shape)
        np.testing.assert_allclose(singular[:count], np.linalg.svd(due)[1][:count], rtol=1e-5, atol=1e-5)


@given(SHAPES, st.integers(1, 4), SEEDS)
def test_each_expert_of_a_stack_is_a_matrix_of_its_own(shapes, experts, seed):
    one_by_one = [(2, width, out) for _, width, out in shapes for _ in range(experts)]
    adapter = drawn(seed, layout(one_by_one))
    together = fedsvd.rebased(stacked(adapter, experts), rank=2)
    assert bits(together) == bits(stacked(fedsvd.rebased(adapter), experts))


def test_before_b_has_moved_a_keeps_its_space():
    adapter = Adapter({n: t * ("lora_A" in n) for n, t in drawn(0).items()})
    new = fedsvd.rebased(adapter)
    for pair in pairs(adapter):
        assert not new[pair.b].any()
        a, old = new[pair.a].astype(float), adapter[pair.a].astype(float)
        np.testing.assert_allclose(old @ a.T @ a, old, atol=1e-5)  # the projection keeps it


@pytest.mark.parametrize("every", [1, 3])
def test_the_model_of_a_round_is_that_of_a_plain_step_until_the_basis_has_changed(every):
    plain, anew = run(sgd.build(sgd.Config())), run(fedsvd.build(fedsvd.Config(every=every)))
    for number in range(1, every + 1):
        for name, due in products(plain[number - 1][0].adapter).items():
            np.testing.assert_allclose(products(anew[number - 1][0].adapter)[name], due, rtol=1e-4, atol=1e-5)
        same = bits(plain[number - 1][0].adapter) == bits(anew[number - 1][0].adapter)
        assert same == (number < every)
    assert all(report.figures["gap"] == 0.0 for _, report in anew)


def test_a_moves_at_the_server_and_clients_send_b_alone():
    seen = run(fedsvd.build(fedsvd.Config()))
    a_of = [{n: t.tobytes() for n, t in state.adapter.items() if "lora_A" in n} for state, _ in seen]
    assert len({tuple(each.values()) for each in a_of}) == len(seen)
    sent = sum(t.nbytes for n, t in drawn(0).items() if "lora_B" in n)
    assert [report.bytes_up for _, report in seen] == [4 * sent] * len(seen)


def test_noise_is_added_before_the_factors_are_written_anew():
    """The product of the result is that of the noisy B and the A that the clients had."""

    def on_server(update, state, draws):
        noisy = {n: t + np.float32(0.5) for n, t in update.delta.items()}
        return type(update)(round=0, delta=Adapter(noisy), weight=1.0, clients=update.clients), state

    noise = Transform(on_server=on_server)
    ((plain, _),) = run(sgd.build(sgd.Config()), until=1)
    ((anew, _),) = run(fedsvd.build(fedsvd.Config()), until=1, transform=noise)
    for pair in pairs(plain.adapter):
        due = (plain.adapter[pair.b] + 0.5).astype(float) @ plain.adapter[pair.a]
        np.testing.assert_allclose(products(anew.adapter)[pair.a], due, rtol=1e-4, atol=1e-4)


def remembering(**keys):
    return Algorithm(remember=lambda memory, broadcast, result: (memory, memory), **keys)


def test_a_memory_of_factors_is_refused_where_the_factors_are_written_anew():
    server = fedsvd.build(fedsvd.Config())
    anew = Aggregation(combine=mean.mean, is_mean=False, keeps_basis=False)
    with pytest.raises(SettingsError, match=r"server optimiser rewrites them.* \[server\] name"):
        method(remembering(), server=server)
    with pytest.raises(SettingsError, match=r"aggregation rewrites them.* \[aggregation\] name"):
        method(remembering(), aggregation=anew)
    with pytest.raises(SettingsError, match="rewrites them"):
        method(Algorithm(server_init=lambda adapter: {"c": adapter}), server=server)
    method(remembering(memory_is_basis_free=True), server=server)
    method(remembering())


def test_a_momentum_is_refused_where_the_factors_are_written_anew():
    server = ServerOptimiser(
        apply=lambda state, update: state,
        init=lambda adapter: {"momentum": adapter},
        rebase=lambda state, context: state.adapter,
    )
    with pytest.raises(SettingsError, match="its own state would belong to the old ones"):
        method(server=server)


def test_an_aggregation_that_needs_a_whole_step_is_refused():
    anew = Aggregation(combine=mean.mean, is_mean=False, keeps_basis=False)
    with pytest.raises(SettingsError, match="factorises the sum of the products again"):
        method(aggregation=anew, server=fedsvd.build(fedsvd.Config()))
