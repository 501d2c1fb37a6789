import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from tests.core.test_factor_gap import layout, measured, stacked
from tests.quadratic import Quadratic, chosen, drawn, method

from shepherd.algorithms import fedavg, ffa_lora, rolora
from shepherd.core import Adapter, Broadcast, Context, Payload, Seeded, Transform, Update, chain
from shepherd.core.factor_gap import pairs
from shepherd.errors import SettingsError
from shepherd.rounds import rounds, start
from shepherd.transforms import clip, fedrot

SHAPES = st.lists(st.tuples(*[st.integers(1, 6)] * 3), min_size=1, max_size=3)  # (rank, in, out)
SEEDS = st.integers(0, 2**32)
STRENGTHS = st.floats(0.0, 1.0)
ROUNDS = st.integers(0, 3)


def sent(adapter, delta, strength=1.0, round=0, rank=None, names=("c0",)):
    transform = fedrot.build(fedrot.Config(strength=strength))
    state = transform.init(Context(rank=rank))
    update = Update(round=round, clients=names, delta=delta, weight=2.0)
    broadcast = Broadcast(round=round, adapter=adapter, seed=0)
    return transform.at_client(update, transform.public(state), Seeded(0), broadcast, Payload())[0]


def rotation(rng, rank):
    turn = np.linalg.qr(rng.normal(size=(rank, rank)))[0]
    turn[:, -1] *= np.linalg.det(turn)
    return turn


@given(SHAPES, SEEDS, STRENGTHS, ROUNDS)
def test_the_clients_product_stays_the_same_at_any_strength(shapes, seed, strength, round):
    adapter, delta = drawn(seed, layout(shapes)), drawn(seed + 1, layout(shapes))
    after = sent(adapter, delta, strength, round).delta
    for pair in pairs(adapter):
        due = (adapter[pair.b] + delta[pair.b]) @ (adapter[pair.a] + delta[pair.a])
        got = (adapter[pair.b] + after[pair.b]) @ (adapter[pair.a] + after[pair.a])
        np.testing.assert_allclose(got, due, rtol=1e-4, atol=1e-4)


@given(SHAPES, SEEDS, ROUNDS)
def test_the_rounds_factor_comes_as_near_to_the_broadcasts_as_a_rotation_can_bring_it(shapes, seed, round):
    """No rotation that was drawn brings it nearer, and neither does half the turn."""
    adapter, delta = drawn(seed, layout(shapes)), drawn(seed + 1, layout(shapes))
    after, half = (sent(adapter, delta, strength, round).delta for strength in (1.0, 0.5))
    rng = np.random.default_rng(seed)
    for pair in pairs(adapter):
        name = pair.b if round % 2 else pair.a
        nearest = np.linalg.norm(after[name])
        assert nearest <= np.linalg.norm(half[name]) + 1e-5
        assert nearest <= np.linalg.norm(delta[name]) + 1e-5
        whole = (adapter[name] + delta[name]).astype(float)
        for _ in range(20):
            turn = rotation(rng, adapter[pair.a].shape[0])
            other = whole @ turn if round % 2 else turn.T @ whole
            assert nearest <= np.linalg.norm(other - adapter[name]) + 1e-5


@given(st.tuples(st.integers(1, 4), st.integers(4, 6), st.integers(4, 6)), st.integers(2, 5), SEEDS, ROUNDS)
def test_clients_that_are_one_model_in_turned_factors_come_to_agree_and_the_gap_is_gone(
    shape, count, seed, round
):
    adapter, local = drawn(seed, layout([shape])), drawn(seed + 1, layout([shape]))
    (pair,) = pairs(adapter)
    overlap = local[pair.b].T @ adapter[pair.b] if round % 2 else local[pair.a] @ adapter[pair.a].T
    singular = np.linalg.svd(overlap)[1]
    assume(
        singular[-1] > 1e-2
        and (len(singular) < 2 or np.linalg.det(overlap) > 0 or singular[-2] - singular[-1] > 1e-2)
    )
    rng = np.random.default_rng(seed)
    deltas = []
    for _ in range(count):
        turn = rotation(rng, shape[0])
        factors = {pair.a: turn.T @ local[pair.a], pair.b: local[pair.b] @ turn}
        deltas.append(Adapter({n: factors[n] - adapter[n] for n in adapter}))
    after = [sent(adapter, delta, round=round) for delta in deltas]
    for update in after[1:]:
        for name in adapter:
            np.testing.assert_allclose(update.delta[name], after[0].delta[name], atol=1e-3)
    assert measured(adapter, after) < 1e-4
    before = [Update(round=0, clients=("c",), delta=delta, weight=1.0) for delta in deltas]
    assert shape[0] == 1 or measured(adapter, before) > measured(adapter, after)


@given(SHAPES, st.integers(1, 4), SEEDS, STRENGTHS, ROUNDS)
def test_each_expert_of_a_stack_is_turned_on_its_own(shapes, experts, seed, strength, round):
    named = layout([(2, width, out) for _, width, out in shapes for _ in range(experts)])
    adapter, delta = drawn(seed, named), drawn(seed + 1, named)
    together = sent(stacked(adapter, experts), stacked(delta, experts), strength, round, rank=2).delta
    for name, due in stacked(sent(adapter, delta, strength, round).delta, experts).items():
        np.testing.assert_allclose(together[name], due, rtol=1e-5, atol=1e-5)


@given(st.integers(1, 4), SEEDS, ROUNDS)
def test_a_client_of_fewer_ranks_turns_the_ranks_that_it_has(rank, seed, round):
    named = layout([(5, 7, 6)])
    adapter, few = drawn(seed, named), drawn(seed + 1, layout([(rank, 7, 6)]))
    corner = Adapter({n: t[tuple(map(slice, few[n].shape))] for n, t in adapter.items()})
    got, due = sent(adapter, few, round=round).delta, sent(corner, few, round=round).delta
    for name in few:
        np.testing.assert_array_equal(got[name], due[name])


@settings(max_examples=20)
@given(SEEDS)
def test_towards_a_factor_that_is_zero_nothing_turns(seed):
    named = layout([(3, 5, 4)])
    adapter = Adapter({n: t * ("lora_A" in n) for n, t in drawn(seed, named).items()})
    delta = drawn(seed + 1, named)
    after = sent(adapter, delta, round=1).delta  # a round of B, which is zero
    for name in named:
        np.testing.assert_allclose(after[name], delta[name], rtol=1e-6, atol=1e-6)


def test_where_the_reference_lacks_a_direction_the_rest_turns_alone():
    """B of rank 2 whose third direction is zero: what a client has there keeps its place."""
    named = {"m.lora_A.weight": (3, 5), "m.lora_B.weight": (4, 3)}
    adapter = drawn(0, named)
    b = adapter["m.lora_B.weight"].copy()
    b[:, 2] = 0
    adapter = Adapter({**adapter, "m.lora_B.weight": b})
    turn = np.eye(3)
    turn[:2, :2] = [[0.8, -0.6], [0.6, 0.8]]
    local = {"m.lora_A.weight": turn.T @ adapter["m.lora_A.weight"], "m.lora_B.weight": b @ turn}
    delta = Adapter({n: local[n] - adapter[n] for n in local})
    after = sent(adapter, delta, round=1).delta
    for tensor in after.values():
        np.testing.assert_allclose(tensor, 0.0, atol=1e-5)


def test_a_rotation_is_one_in_any_number_of_dimensions():
    rng = np.random.default_rng(0)
    for rank in range(1, 6):
        for matrix in rng.normal(size=(20, rank, rank)):
            turn = fedrot.nearest_rotation(matrix)
            np.testing.assert_allclose(turn @ turn.T, np.eye(rank), atol=1e-12)
            assert np.linalg.det(turn) == pytest.approx(1.0)


def test_weight_and_extra_are_untouched():
    adapter = drawn(0)
    transform = fedrot.build(fedrot.Config())
    update = Update(round=0, clients=("c0",), delta=drawn(1), weight=3.0, extra=Adapter({"c": [1.0]}))
    broadcast = Broadcast(round=0, adapter=adapter, seed=0)
    after, _ = transform.at_client(update, {"rank": np.array(2)}, Seeded(0), broadcast, Payload())
    assert (after.weight, after.extra, after.clients) == (3.0, update.extra, ("c0",))


@pytest.mark.parametrize("algorithm", [ffa_lora, rolora])
def test_an_algorithm_that_sends_one_factor_is_refused(algorithm):
    asked = algorithm.build(algorithm.Config())
    for transform in (
        fedrot.build(fedrot.Config()),
        chain(fedrot.build(fedrot.Config()), clip.build(clip.Config())),
    ):
        with pytest.raises(SettingsError, match=r"sends only one of them in a round; remove the transform"):
            method(asked, transform=transform)
        assert method(transform=transform)


def test_it_comes_before_what_bounds_or_encodes_a_change():
    turning, clipping = fedrot.build(fedrot.Config()), clip.build(clip.Config())
    with pytest.raises(SettingsError, match="list it first"):
        chain(clipping, turning)
    with pytest.raises(SettingsError, match="list it first"):
        chain(Transform(), chain(turning))
    assert chain(clipping, Transform()).relative is None
    assert chain(turning, turning, clipping).needs_both_factors


def test_clipped_after_it_no_update_is_refused():
    both = chain(fedrot.build(fedrot.Config(strength=1.0)), clip.build(clip.Config(norm=0.05)))
    asked = method(fedavg.ALGORITHM, transform=both)
    loop = rounds(
        asked,
        Quadratic(fedavg.ALGORITHM, both),
        start(asked, drawn(0)),
        until=3,
        select=chosen("all"),
        quorum=1.0,
        seed=0,
    )
    before = drawn(0)
    for state, report in loop:
        assert not report.failures
        assert 0 < state.adapter.plus(before, -1.0).norm() <= 0.05 * (1 + 1e-5)
        before = state.adapter


def test_a_client_whose_numbers_are_not_finite_is_a_counted_failure():
    transform = chain(fedrot.build(fedrot.Config()))

    class Sick(Quadratic):
        def _grad(self, broadcast, client, name, step, param):
            grad = super()._grad(broadcast, client, name, step, param)
            return grad * np.nan if client == "c1" else grad

    asked = method(transform=transform)
    loop = rounds(
        asked,
        Sick(fedavg.ALGORITHM, transform),
        start(asked, drawn(0)),
        until=1,
        select=chosen("all"),
        quorum=0.5,
        seed=0,
    )
    ((state, report),) = loop
    assert list(report.failures) == ["c1"]
    assert "is not finite" in report.failures["c1"]
    assert state.round == 1
