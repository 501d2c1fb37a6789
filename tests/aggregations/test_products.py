"""Aggregations of products against dense matrices: exact where they say so, whatever the clients' basis."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.quadratic import bits, drawn

from shepherd.aggregations import flora, florist, mean, product, side, zero_padding
from shepherd.core import Adapter, Context, ServerState, Update, corner, moved, of_rank, padded, shapes_of
from shepherd.core.factor_gap import pairs
from shepherd.errors import AdapterError, FederationError

RANK, OUT, WIDTH = 3, 9, 8
LAYOUT = {
    "q.lora_A.weight": (RANK, WIDTH),
    "q.lora_B.weight": (OUT, RANK),
    "v.lora_A.weight": (RANK, 5),
    "v.lora_B.weight": (4, RANK),
}
CONTEXT = Context(rank=RANK)
SEEDS = st.integers(0, 2**32)
COHORTS = st.lists(st.tuples(st.integers(1, RANK), st.floats(0.1, 50)), min_size=1, max_size=5)
TOLERANCE = {"rtol": 2e-5, "atol": 2e-5}  # of float32 factors

PRODUCT = product.build(product.Config())
EVERY = {
    "product": PRODUCT,
    "ordered": product.build(product.Config(split="ordered")),
    "balanced": product.build(product.Config(split="balanced")),
    "truncated": product.build(product.Config(truncated=True)),
    "by rank": product.build(product.Config(truncated=True, rank_weights=True)),
    "florist": florist.build(florist.Config(energy=1.0)),
    "side": side.build(side.Config(side_rank=16)),
    "largest": side.build(side.Config(side_rank=16, means=False)),
    "flora": flora.build(flora.Config(side_rank=16)),
}
PADDED = zero_padding.build(zero_padding.Config())
EXACT = {name: EVERY[name] for name in ("side", "largest", "flora")}


def state_of(aggregation, seed=0):
    """A broadcast whose side ranks hold something."""
    whole = dict(padded(drawn(seed, LAYOUT), aggregation.side_rank))
    rng = np.random.default_rng(seed)
    for name in whole:
        shape = of_rank(name, whole[name].shape, RANK + 2)
        beyond = rng.normal(size=shape).astype(np.float32) * (corner(whole[name], shape) == 0)
        whole[name] = whole[name].copy()
        whole[name][tuple(map(slice, shape))] += beyond
    return ServerState(round=0, adapter=Adapter(whole if aggregation.side_rank else drawn(seed, LAYOUT)))


def cohort(seed, ranks, weights):
    """Clients' updates, each at its own rank."""
    whole = [drawn(seed + 1 + k, LAYOUT) for k in range(len(ranks))]
    return [
        Update(
            round=0,
            clients=(f"c{k}",),
            weight=weight,
            delta=Adapter({n: corner(t, of_rank(n, t.shape, rank)) for n, t in delta.items()}),
        )
        for k, (delta, rank, weight) in enumerate(zip(whole, ranks, weights, strict=True))
    ]


def local(state, update, name, *, truncated=False):
    """A client's factor: of all trained ranks, or of its own alone."""
    change = update.delta[name].astype(float)
    shape = change.shape if truncated else of_rank(name, LAYOUT[name], RANK)
    whole = corner(state.adapter[name], shape).astype(float)
    corner(whole, change.shape)[...] += change
    return whole


def products(adapter):
    return {pair.a: adapter[pair.b].astype(float) @ adapter[pair.a] for pair in pairs(adapter)}


def after(aggregation, state, updates, context=CONTEXT):
    return moved(state, aggregation.combine(state, iter(updates), context).delta).adapter


def due(state, updates, side_rank=0, *, truncated=False):
    """The weighted sum of the products, with those of the side ranks."""
    whole = sum(update.weight for update in updates)
    found = {}
    for pair in pairs(state.adapter):
        kept = state.adapter[pair.b][:, RANK:].astype(float) @ state.adapter[pair.a][RANK:]
        found[pair.a] = kept * bool(side_rank) + sum(
            u.weight
            / whole
            * local(state, u, pair.b, truncated=truncated)
            @ local(state, u, pair.a, truncated=truncated)
            for u in updates
        )
    return found


def cut(matrix, rank):
    u, s, vt = np.linalg.svd(matrix)
    return (u[:, :rank] * s[:rank]) @ vt[:rank]


def same(one, two, **tolerance):
    assert one.keys() == two.keys()
    for name in one:
        np.testing.assert_allclose(one[name], two[name], **{**TOLERANCE, **tolerance})


@given(COHORTS, SEEDS, st.sampled_from(["product", "ordered", "balanced", "truncated", "florist"]))
def test_it_is_the_weighted_sum_of_the_products_cut_to_the_rank(members, seed, name):
    state, updates = state_of(EVERY[name], seed), cohort(seed, *zip(*members, strict=True))
    whole = due(state, updates, truncated=EVERY[name].truncates)
    expected = {a: cut(w, RANK) for a, w in whole.items()}
    same(products(after(EVERY[name], state, updates)), expected, atol=1e-3)


@given(COHORTS, SEEDS, st.sampled_from(sorted(EXACT)))
def test_under_the_cap_nothing_is_lost(members, seed, name):
    aggregation = EXACT[name]
    state, updates = state_of(aggregation, seed), cohort(seed, *zip(*members, strict=True))
    expected = due(state, updates, aggregation.side_rank)
    same(products(after(aggregation, state, updates)), expected, atol=1e-3)


@pytest.mark.parametrize("name", [*EVERY, "zero_padding"])
def test_one_client_gets_its_own_product(name):
    aggregation = EVERY.get(name, PADDED)
    state, updates = state_of(aggregation), cohort(0, [RANK], [7.0])
    same(products(after(aggregation, state, updates)), due(state, updates, aggregation.side_rank))


@pytest.mark.parametrize("name", [*EVERY, "zero_padding"])
def test_the_order_of_the_clients_does_not_matter(name):
    aggregation = EVERY.get(name, PADDED)
    state, updates = state_of(aggregation), cohort(0, [3, 2, 3, 1], [1.0, 4.0, 2.0, 3.0])
    one, two = (after(aggregation, state, each) for each in (updates, updates[::-1]))
    same(*({n: corner(t, LAYOUT[n]) for n, t in each.items()} for each in (one, two)), atol=1e-4)
    same(products(one), products(two), atol=1e-4)


def turned(state, update, seed):
    """The same local products by factors in another basis."""
    rng = np.random.default_rng(seed)
    delta = dict(update.delta)
    for pair in pairs(delta):
        q, _ = np.linalg.qr(rng.normal(size=(RANK, RANK)))
        delta[pair.a] = q.T @ local(state, update, pair.a) - state.adapter[pair.a][:RANK]
        delta[pair.b] = local(state, update, pair.b) @ q - state.adapter[pair.b][:, :RANK]
    return replace(update, delta=Adapter(delta))


@pytest.mark.parametrize("name", [*EVERY, "mean"])
def test_a_client_in_another_basis_changes_the_mean_and_no_product(name):
    aggregation = {**EVERY, "mean": mean.AGGREGATION}[name]
    state, updates = state_of(aggregation), cohort(0, [RANK] * 3, [1.0, 2.0, 3.0])
    others = [turned(state, updates[0], 1), *updates[1:]]
    one, two = (products(after(aggregation, state, each)) for each in (updates, others))
    if name == "mean":
        assert all(np.abs(one[a] - two[a]).max() > 0.1 for a in one)
    else:
        same(one, two, atol=1e-4)


@pytest.mark.parametrize("step", [0.5, 1.5])
def test_a_step_goes_from_the_broadcast_product_to_the_mean_product(step):
    aggregation = product.build(product.Config(step=step))
    state, updates = state_of(aggregation), cohort(0, [RANK, 1], [1.0, 2.0])
    before = products(state.adapter)
    expected = {a: cut(before[a] + step * (w - before[a]), RANK) for a, w in due(state, updates).items()}
    same(products(after(aggregation, state, updates)), expected, atol=1e-4)


def test_means_of_equal_ranks_are_those_of_plain_averaging():
    aggregation = EVERY["side"]
    state, updates = state_of(aggregation), cohort(0, [RANK] * 3, [1.0, 2.0, 3.0])
    got = aggregation.combine(state, iter(updates), CONTEXT).delta
    plain = ServerState(round=0, adapter=drawn(0, LAYOUT))
    for name, change in mean.mean(plain, updates, CONTEXT).delta.items():
        np.testing.assert_allclose(corner(got[name], change.shape), change, rtol=1e-5, atol=1e-6)


def test_above_the_cap_the_largest_part_of_the_rest_is_kept():
    aggregation = side.build(side.Config(side_rank=2))
    state, updates = state_of(aggregation), cohort(0, [RANK] * 4, [1.0] * 4)
    new = after(aggregation, state, updates)
    trained = {p.a: new[p.b][:, :RANK].astype(float) @ new[p.a][:RANK] for p in pairs(new)}
    whole = due(state, updates, 2)
    expected = {a: trained[a] + cut(whole[a] - trained[a], 2) for a in whole}
    same(products(new), expected, atol=1e-4)


def test_the_stack_begins_anew_by_the_round_and_the_runs_seed_alone():
    aggregation = EVERY["flora"]
    updates = cohort(0, [RANK] * 2, [1.0, 2.0])
    found = []
    for number, seed in ((0, 0), (0, 0), (1, 0), (0, 1)):
        state = replace(state_of(aggregation), round=number)
        context = Context(rank=RANK, seed=seed)
        new = aggregation.combine(state, [replace(u, round=number) for u in updates], context)
        found.append(state.adapter.plus(new.delta))
    first, again, later, other = found
    assert bits(first) == bits(again)
    a, b = "q.lora_A.weight", "q.lora_B.weight"
    for another in (later, other):
        assert not np.array_equal(first[a][:RANK], another[a][:RANK])
    assert not first[b][:, :RANK].any()
    assert np.abs(first[a][:RANK]).max() <= 1 / np.sqrt(WIDTH)


@given(st.floats(0.05, 1.0), SEEDS)
def test_an_energy_decides_the_rank_of_each_matrix_and_the_other_ranks_can_be_trained(energy, seed):
    aggregation = florist.build(florist.Config(energy=energy, split="ordered"))
    state, updates = state_of(aggregation, seed), cohort(seed, [RANK] * 3, [1.0] * 3)
    new = after(aggregation, state, updates)
    for pair in pairs(new):
        values = np.linalg.svd(due(state, updates)[pair.a], compute_uv=False)
        shares = np.cumsum(values**2) / (values**2).sum()
        rank = min(RANK, int((shares < energy * (1 - 1e-9)).sum()) + 1)
        assert np.abs(new[pair.b]).max(0).astype(bool).tolist() == [j < rank for j in range(RANK)]
        assert np.linalg.matrix_rank(new[pair.a]) == RANK


def test_each_rank_is_weighted_over_the_clients_that_have_it():
    aggregation = EVERY["by rank"]
    state, updates = state_of(aggregation), cohort(0, [1, 3], [1.0, 3.0])
    expected = {}
    for pair in pairs(state.adapter):
        one, three = (
            local(state, u, pair.b, truncated=True) @ local(state, u, pair.a, truncated=True) for u in updates
        )
        expected[pair.a] = cut(0.25 * one + 0.75 * cut(three, 1) + (three - cut(three, 1)), RANK)
    same(products(after(aggregation, state, updates)), expected, atol=1e-4)


def test_zero_padding_by_hand():
    state = ServerState(
        round=0, adapter=Adapter({"q.lora_A.weight": [[1, 0], [0, 1]], "q.lora_B.weight": [[0, 0]]})
    )
    small = Update(
        round=0, clients=("a",), weight=9.0,
        delta=Adapter({"q.lora_A.weight": [[0, 0]], "q.lora_B.weight": [[1]]}),
    )  # fmt: skip
    large = Update(
        round=0, clients=("b",), weight=1.0,
        delta=Adapter({"q.lora_A.weight": [[0, 0], [0, 0]], "q.lora_B.weight": [[0, 3]]}),
    )  # fmt: skip
    new = after(zero_padding.build(zero_padding.Config()), state, [small, large], Context(rank=2))
    # the products are (1, 0) and (0, 3), so the weights are 1/4 and 3/4
    assert new["q.lora_A.weight"].tolist() == [[1, 0], [0, 0.75]]
    assert new["q.lora_B.weight"].tolist() == [[0.25, 2.25]]


def test_zero_padding_of_products_of_zero_changes_nothing():
    state = ServerState(round=0, adapter=Adapter({n: np.zeros(s) for n, s in LAYOUT.items()}))
    still = replace(cohort(0, [1], [1.0])[0], delta=Adapter(
        {n: np.zeros(of_rank(n, shape, 1)) for n, shape in LAYOUT.items()}
    ))  # fmt: skip
    assert bits(after(zero_padding.build(zero_padding.Config()), state, [still])) == bits(state.adapter)


@pytest.mark.parametrize("name", [n for n in EVERY if n not in EXACT])
def test_experts_of_a_stack_are_matrices_of_their_own(name):
    """A stack of three experts' factors, against three modules that are named one by one."""
    experts = 3
    shapes = {f"e{e}.lora_{f}.weight": LAYOUT[f"q.lora_{f}.weight"] for e in range(experts) for f in "AB"}

    def stacked(adapter):
        a = np.concatenate([adapter[f"e{e}.lora_A.weight"] for e in range(experts)])
        b = np.stack([adapter[f"e{e}.lora_B.weight"] for e in range(experts)], axis=2).reshape(OUT, -1)
        return Adapter({"x.lora_A.weight": a, "x.lora_B.weight": b})

    apart = ServerState(round=0, adapter=drawn(0, shapes))
    updates = [
        Update(round=0, clients=(f"c{k}",), weight=1.0 + k, delta=drawn(k + 1, shapes)) for k in range(3)
    ]
    whole = ServerState(round=0, adapter=stacked(apart.adapter))
    together = [replace(update, delta=stacked(update.delta)) for update in updates]
    got = after(EVERY[name], whole, together)
    expected = stacked(after(EVERY[name], apart, updates))
    for tensor in expected:
        np.testing.assert_allclose(got[tensor], expected[tensor], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", EXACT)
def test_experts_have_no_side_ranks(name):
    state = ServerState(
        round=0, adapter=Adapter({"x.lora_A.weight": np.zeros((22, 5)), "x.lora_B.weight": np.zeros((4, 22))})
    )
    update = Update(round=0, clients=("c",), weight=1.0, delta=drawn(0, {"x.lora_A.weight": (6, 5)}))
    with pytest.raises(AdapterError, match=r"x.lora_A.weight stacks the matrices of experts .22 rows"):
        EVERY[name].combine(state, [update], CONTEXT)


def test_experts_of_unequal_ranks_are_refused():
    state = ServerState(
        round=0, adapter=Adapter({"x.lora_A.weight": np.zeros((6, 5)), "x.lora_B.weight": np.zeros((4, 6))})
    )
    update = Update(round=0, clients=("c1",), weight=1.0, delta=drawn(0, {"x.lora_A.weight": (2, 5)}))
    with pytest.raises(FederationError, match=r"client c1 has another rank .* x.lora_A.weight, which stacks"):
        PRODUCT.combine(state, [update], CONTEXT)


@pytest.mark.parametrize("name", EVERY)
def test_a_client_that_sends_b_alone_has_the_broadcasts_a(name):
    aggregation = EVERY[name]
    state, updates = state_of(aggregation), cohort(0, [RANK] * 2, [1.0, 2.0])
    sent = [replace(u, delta=Adapter({n: t for n, t in u.delta.items() if "lora_B" in n})) for u in updates]
    whole = [replace(u, delta=Adapter({n: t * ("lora_B" in n) for n, t in u.delta.items()})) for u in updates]
    new = after(aggregation, state, sent)
    assert bits(new) == bits(after(aggregation, state, whole))
    if name not in EXACT:
        same(products(new), due(state, whole), atol=1e-4)


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        ({"q.lora_A.weight": (4, WIDTH)}, r"lora_A.weight of client c1 has shape \(4, 8\), and at most \(3"),
        ({"q.lora_B.weight": (OUT, 4)}, r"lora_B.weight of client c1 has shape \(9, 4\), and at most \(9"),
        ({"q.lora_A.weight": (2, WIDTH), "q.lora_B.weight": (OUT, 1)}, r"c1 sends 2 ranks of .* and 1 of"),
        ({"q.lora_A.weight": (2, 7)}, r"q.lora_A.weight of client c1 has shape \(2, 7\)"),
        ({"q.lora_A.weight": (0, WIDTH)}, r"q.lora_A.weight of client c1 has shape \(0, 8\)"),
        ({"q.lora_A.weight": (WIDTH,)}, r"q.lora_A.weight of client c1 has shape \(8,\)"),
        ({"k.lora_A.weight": (2, WIDTH)}, r"tensor k.lora_A.weight of client c1 is not in the run's adapter"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("name", [*EVERY, "zero_padding"])
def test_a_tensor_that_does_not_fit_is_named_with_its_client(name, shapes, message):
    aggregation = {**EVERY, "zero_padding": zero_padding.build(zero_padding.Config())}[name]
    bad = Update(round=0, clients=("c1",), weight=1.0, delta=drawn(0, shapes))
    with pytest.raises(AdapterError, match=message):
        aggregation.combine(state_of(aggregation), [*cohort(0, [2], [1.0]), bad], CONTEXT)


@pytest.mark.parametrize("name", EVERY)
def test_what_is_no_factor_and_what_is_extra_is_averaged(name):
    aggregation = EVERY[name]
    state = state_of(aggregation)
    state = replace(state, adapter=Adapter({**state.adapter, "norm.weight": [1.0, 2.0]}))
    updates = [
        replace(
            u, delta=Adapter({**u.delta, "norm.weight": [float(k), 0.0]}), extra=Adapter({"c": [4.0 * k]})
        )
        for k, u in enumerate(cohort(0, [RANK] * 2, [3.0, 1.0]))
    ]
    combined = aggregation.combine(state, updates, CONTEXT)
    assert combined.delta["norm.weight"].tolist() == [0.25, 0.0]
    assert combined.extra["c"].tolist() == [1.0]
    assert (combined.weight, combined.clients) == (4.0, ("c0", "c1"))


@pytest.mark.parametrize("name", ["product", "ordered", "florist"])
def test_a_visit_that_changed_nothing_leaves_a_model_of_zero_as_it_was(name):
    """The first round with B = 0 and a rate of 0: B stays zero and A alive."""
    fresh = {n: t * ("lora_A" in n) for n, t in drawn(0, LAYOUT).items()}
    state = ServerState(round=0, adapter=Adapter(fresh))
    still = replace(cohort(0, [RANK], [1.0])[0], delta=Adapter({n: np.zeros(s) for n, s in LAYOUT.items()}))
    new = after(EVERY[name], state, [still, replace(still, clients=("c1",))])
    for pair in pairs(new):
        assert not new[pair.b].any()
        assert np.linalg.matrix_rank(new[pair.a]) == RANK
    if name == "product":
        np.testing.assert_allclose(new["q.lora_A.weight"], fresh["q.lora_A.weight"], rtol=1e-6)


@pytest.mark.parametrize("name", EVERY)
def test_large_numbers_stay_finite_in_between(name):
    aggregation = EVERY[name]
    state = state_of(aggregation)
    huge = [replace(u, delta=u.delta.times(1e15)) for u in cohort(0, [RANK] * 2, [1.0, 1e12])]
    combined = aggregation.combine(state, huge, CONTEXT)
    assert shapes_of(combined.delta) == shapes_of(state.adapter)
    assert all(np.isfinite(tensor).all() for tensor in combined.delta.values())


def test_a_step_above_one_goes_on_in_a_and_in_b_alike():
    """Or B alone would grow from round to round, and with it the effect of each step of A."""
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(RANK, WIDTH)), rng.normal(size=(OUT, RANK))
    names = "q.lora_A.weight", "q.lora_B.weight"
    state = ServerState(round=0, adapter=Adapter(dict(zip(names, (a, b), strict=True))))
    grown = Adapter(dict(zip(names, (0.1 * a, 0.1 * b), strict=True)))
    update = Update(round=0, clients=("c",), weight=1.0, delta=grown)
    wide = after(product.build(product.Config(step=2.0)), state, [update])
    sizes = [np.linalg.norm(wide[name]) / np.linalg.norm(state.adapter[name]) for name in names]
    np.testing.assert_allclose(sizes[0], 1.2, rtol=1e-5)
    np.testing.assert_allclose(sizes[0] * sizes[1], 1 + 2 * (1.1**2 - 1), rtol=1e-5)


@pytest.mark.parametrize(("asked", "known"), [([2, 2], (2,)), ([2, 2], ()), ([3, 3], (2,)), ([1, 3], (1, 2))])
def test_what_a_truncated_client_is_sent_is_the_best_of_its_rank_whoever_was_asked(asked, known):
    aggregation = EVERY["truncated"]
    state = state_of(aggregation)
    updates = cohort(3, asked, [1.0, 2.0])
    new = after(aggregation, state, updates, replace(CONTEXT, ranks=known))
    for name, whole in due(state, updates, truncated=True).items():
        pair = next(pair for pair in pairs(new) if pair.a == name)
        for rank in {*known, *asked}:
            sent = new[pair.b][:, :rank].astype(float) @ new[pair.a][:rank]
            np.testing.assert_allclose(sent, cut(whole, rank), **TOLERANCE)


def test_numbers_whose_products_overflow_are_a_sentence():
    aggregation = product.build(product.Config(step=1e300))
    updates = cohort(0, [RANK], [1.0])
    with np.errstate(all="ignore"), pytest.raises(FederationError, match="too large; clip the updates"):
        after(aggregation, state_of(aggregation), [replace(updates[0], delta=updates[0].delta.times(1e30))])


@pytest.mark.parametrize("name", ["truncated", "product", "ordered", "balanced"])
def test_ranks_that_a_matrix_cannot_use_stay_trainable(name):
    shapes = {"m.lora_A.weight": (6, 3), "m.lora_B.weight": (5, 6)}
    state = ServerState(round=0, adapter=drawn(0, shapes))
    update = Update(round=0, clients=("c",), weight=1.0, delta=drawn(1, shapes))
    new = after(EVERY[name], state, [update], Context(rank=6, ranks=(4,)))
    assert all(row.any() for row in new["m.lora_A.weight"])
    own = moved(state, update.delta).adapter
    same(products(new), products(own), **TOLERANCE)
