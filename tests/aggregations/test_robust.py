"""The robust aggregations against independent implementations, and against bad clients."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize, stats
from tests.quadratic import drawn, method, update_of

from shepherd import plugins
from shepherd.config import PartTable
from shepherd.core import Adapter, Broadcast, Context, ServerState
from shepherd.core.closeness import gram, squared_distances
from shepherd.drill import attacks
from shepherd.errors import FederationError, SettingsError
from shepherd.rounds import start

CONTEXT = Context(rank=2)


def built(name, **keys):
    return plugins.aggregation(PartTable(name=name, **keys))


def state() -> ServerState:
    return start(method(), drawn(0))


def combined(name, updates, context=CONTEXT, **keys):
    return built(name, **keys).combine(state(), iter(updates), context)


def stacked(updates, tensor):
    return np.stack([update.delta[tensor] for update in updates]).astype(float)


def cohort(count, *, spread=0.3, seed=0):
    """Updates around one change, as of clients with similar data."""
    middle = drawn(1000 + seed)
    return [
        replace(update_of(f"c{k}", 0), delta=middle.plus(drawn(seed + k), spread), weight=1.0 + k)
        for k in range(count)
    ]


@settings(max_examples=25)
@given(count=st.integers(3, 9), seed=st.integers(0, 50))
def test_the_median_is_numpys(count, seed):
    updates = [update_of(f"c{k}", seed + k, weight=k + 1.0) for k in range(count)]
    got = combined("coordinate_median", updates)
    for name in got.delta:
        np.testing.assert_allclose(got.delta[name], np.median(stacked(updates, name), axis=0), rtol=1e-6)


@settings(max_examples=25)
@given(count=st.integers(10, 23), trim=st.sampled_from([0.1, 0.2, 0.3, 0.45]), seed=st.integers(0, 50))
def test_the_trimmed_mean_is_scipys(count, trim, seed):
    updates = [update_of(f"c{k}", seed + k) for k in range(count)]
    got = combined("trimmed_mean", updates, trim=trim)
    for name in got.delta:
        due = stats.trim_mean(stacked(updates, name), trim + 1e-12, axis=0)
        np.testing.assert_allclose(got.delta[name], due, rtol=1e-5, atol=1e-6)


def krum_by_hand(points, bad):
    """Krum's scores by loops over clients, from Blanchard et al., section 4."""
    count, found = len(points), []
    for i in range(count):
        others = sorted(float(np.sum((points[i] - points[j]) ** 2)) for j in range(count) if j != i)
        found.append(sum(others[: count - bad - 2]))
    return found


@settings(max_examples=25)
@given(bad=st.integers(0, 2), more=st.integers(0, 4), keep=st.integers(1, 3), seed=st.integers(0, 50))
def test_krum_keeps_the_updates_with_the_lowest_scores(bad, more, keep, seed):
    count = max(2 * bad + 3, keep + bad + 2) + more
    updates = [update_of(f"c{k}", seed + k) for k in range(count)]
    points = [np.concatenate([t.ravel() for t in update.delta.values()]) for update in updates]
    order = np.argsort(krum_by_hand(points, bad))[:keep]
    got = combined("krum", updates, bad=bad, keep=keep, space="factors")
    assert set(got.clients) == {f"c{k}" for k in order}
    for name in got.delta:
        due = stacked(updates, name)[order].mean(axis=0)
        np.testing.assert_allclose(got.delta[name], due, rtol=1e-5, atol=1e-6)


@settings(max_examples=8)
@given(count=st.integers(3, 7), seed=st.integers(0, 50))
def test_the_geometric_median_is_scipys_minimum(count, seed):
    updates = [update_of(f"c{k}", seed + k, weight=1.0 + k % 3) for k in range(count)]
    points = np.stack([np.concatenate([t.ravel() for t in u.delta.values()]) for u in updates]).astype(float)
    weights = np.array([update.weight for update in updates])

    def cost(z):
        return float(weights @ np.linalg.norm(points - z, axis=1))

    best = optimize.minimize(cost, np.average(points, axis=0, weights=weights), method="BFGS")
    got = combined("geometric_median", updates, space="factors", steps=1000)
    mine = np.concatenate([t.ravel() for t in got.delta.values()])
    assert cost(mine) <= best.fun * (1 + 1e-6)


def test_one_weiszfeld_step_is_the_one_of_the_paper():
    updates = [update_of(f"c{k}", k, weight=1.0 + k) for k in range(5)]
    points = np.stack([np.concatenate([t.ravel() for t in u.delta.values()]) for u in updates]).astype(float)
    shares = np.arange(1.0, 6.0) / 15
    pulls = shares / np.linalg.norm(points - shares @ points, axis=1)
    got = combined("geometric_median", updates, space="factors", steps=1)
    mine = np.concatenate([t.ravel() for t in got.delta.values()])
    np.testing.assert_allclose(mine, pulls @ points / pulls.sum(), rtol=1e-5, atol=1e-6)


def test_fltrust_is_the_formula_of_the_paper():
    updates, root = cohort(6), drawn(1000)
    updates[2] = replace(updates[2], delta=updates[2].delta.times(-5.0))
    points = np.stack([np.concatenate([t.ravel() for t in u.delta.values()]) for u in updates]).astype(float)
    own = np.concatenate([t.ravel() for t in root.values()]).astype(float)
    lengths = np.linalg.norm(points, axis=1)
    trust = np.maximum(0, points @ own / lengths / np.linalg.norm(own))
    due = (trust * np.linalg.norm(own) / lengths) @ points / trust.sum()
    got = combined("fltrust", updates, replace(CONTEXT, root=root), space="factors")
    np.testing.assert_allclose(
        np.concatenate([t.ravel() for t in got.delta.values()]), due, rtol=1e-5, atol=1e-6
    )
    assert got.clients == ("c0", "c1", "c3", "c4", "c5")


def test_where_nobody_is_trusted_nothing_moves():
    got = combined("fltrust", cohort(4), replace(CONTEXT, root=drawn(1000).times(-1.0)))
    assert got.clients == ()
    assert not any(tensor.any() for tensor in got.delta.values())


def test_fltrust_without_examples_of_the_server_says_so():
    with pytest.raises(FederationError, match=r"data\.root"):
        combined("fltrust", cohort(4))


RULES = [
    ("coordinate_median", {}),
    ("trimmed_mean", {"trim": 0.3}),
    ("krum", {"bad": 3}),
    ("krum", {"bad": 3, "keep": 5}),
    ("krum", {"bad": 3, "space": "product"}),
    ("geometric_median", {}),
    ("geometric_median", {"space": "factors"}),
    ("fltrust", {}),
]


def off(result, honest):
    """How far a result is from the mean of the honest updates, as a share of the longest distance of one."""
    mean = {name: stacked(honest, name).mean(axis=0) for name in honest[0].delta}

    def distance(delta):
        return np.sqrt(sum(np.sum((delta[name] - mean[name]) ** 2) for name in mean))

    return distance(result.delta) / max(distance(update.delta) for update in honest)


@settings(max_examples=15)
@given(
    factor=st.sampled_from([-1.0, -30.0, 30.0, 1e6, -1e10]),
    bad=st.integers(1, 3),
    seed=st.integers(0, 20),
)
@pytest.mark.parametrize(("name", "keys"), RULES, ids=lambda each: str(each))
def test_few_bad_clients_do_not_move_it_further_than_an_honest_one_does(name, keys, factor, bad, seed):
    updates = [replace(update, weight=1.0) for update in cohort(10, seed=seed)]
    honest, rest = updates[bad:], updates[:bad]
    wrong = [replace(update, delta=update.delta.times(factor)) for update in rest]
    context = replace(CONTEXT, root=drawn(1000 + seed))
    got = off(combined(name, [*wrong, *honest], context, **keys), honest)
    mean = off(combined("mean", [*wrong, *honest]), honest)
    assert got <= 1.5
    if abs(factor) > 1:
        assert mean > 1.5


def test_a_harmful_pair_of_harmless_factors_is_seen_in_products_alone():
    """B is zero, as at the start: what clients do to A is large, differs, and changes no product yet.

    The bad client leaves A as it is and turns its dB around, so that each of its factors is closer to the
    others than they are to each other, and its product is opposite to theirs.
    """
    adapter = Adapter({n: t * (".lora_A." in n) for n, t in drawn(0).items()})
    step = drawn(7).times(0.2)

    def change(seed, turn):
        noise = drawn(seed)
        return Adapter({n: turn * t if ".lora_B." in n else (turn > 0) * noise[n] for n, t in step.items()})

    updates = [replace(update_of("bad", 0), delta=change(0, -1.0))]
    updates += [replace(update_of(f"c{k}", 0), delta=change(100 + k, 1.0)) for k in range(8)]
    begun = start(method(), adapter)
    for update in updates[1:]:
        for name in adapter:
            assert np.linalg.norm(updates[0].delta[name]) <= np.linalg.norm(update.delta[name]) + 1e-6
    kept = {
        space: built("krum", bad=2, keep=5, space=space).combine(begun, iter(updates), CONTEXT).clients
        for space in ("factors", "product")
    }
    assert "bad" in kept["factors"]
    assert "bad" not in kept["product"]


def test_factors_that_were_turned_are_seen_in_both_spaces_and_not_in_products():
    updates = cohort(9, spread=0.1)
    at = Broadcast(round=0, adapter=state().adapter, seed=0)
    bad = attacks.turned(updates[0], at, np.random.default_rng(3))
    mixed = [bad, *updates[1:]]
    kept = {
        space: combined("krum", mixed, bad=2, keep=5, space=space).clients for space in ("both", "product")
    }
    assert "c0" not in kept["both"]
    squares = squared_distances(gram("product", state().adapter, [u.delta for u in (bad, updates[0])], 2))
    assert squares[0, 1] < 1e-6


WIDE = {"q.lora_A.weight": (8, 32), "q.lora_B.weight": (32, 8)}
BEGUN = start(method(), drawn(0, WIDE))
STEP = drawn(1, WIDE, 0.2)


def disguised(update, kind):
    """The honest product of an update in other factors: turned among the ranks, or one long and one short."""
    if kind == "turned":
        at = Broadcast(round=0, adapter=BEGUN.adapter, seed=0)
        return attacks.turned(update, at, np.random.default_rng(3))
    found = {}
    for name, change in update.delta.items():
        scale = kind if ".lora_B." in name else 1 / kind
        found[name] = scale * (BEGUN.adapter[name] + change) - BEGUN.adapter[name]
    return replace(update, delta=Adapter(found))


def moved_by(name, kind, bad, weights=(1.0, 1.0), factor=1.0, **keys):
    """How far from STEP the result is, by its length: ten clients near it, of which some disguise theirs.

    Args:
        weights: of each good client and of each bad one.
        factor: how many times as long a disguised change is.
    """
    near = [replace(update_of(f"c{k}", 0), delta=STEP.plus(drawn(10 + k, WIDE), 0.05)) for k in range(10)]
    good = [replace(each, weight=weights[0]) for each in near[bad:]]
    wrong = [replace(disguised(each, kind), weight=weights[1]) for each in near[:bad]]
    wrong = [replace(each, delta=each.delta.times(factor)) for each in wrong]
    context = Context(rank=8, root=STEP.plus(drawn(9, WIDE), 0.05))
    result = built(name, **keys).combine(BEGUN, iter([*wrong, *good]), context)
    return result.delta.plus(STEP, -1.0).norm() / STEP.norm()


@pytest.mark.parametrize("kind", ["turned", 0.02, 30.0])
@pytest.mark.parametrize("bad", [6, 7, 8])
def test_fltrust_stands_a_majority_in_other_factors(kind, bad):
    """The unit of each space is the server's own: a majority owns the cohort's medians."""
    assert moved_by("fltrust", kind, bad) < 0.7
    assert moved_by("fltrust", kind, bad, space="product") > 1.0


@pytest.mark.parametrize("kind", ["turned", 0.02, 30.0])
def test_the_geometric_median_stands_a_majority_of_clients_of_little_weight(kind):
    """Four good clients of weight 100 and six bad ones of 10: less than half of the weight is bad."""
    assert moved_by("geometric_median", kind, 6, weights=(100.0, 10.0)) < 0.2
    assert moved_by("geometric_median", kind, 6, weights=(100.0, 10.0), space="product") > 0.3


def test_a_majority_of_little_weight_does_not_own_the_smallest_distance():
    """A smoothing as long as the bad updates would make the geometric median the mean."""
    keys = {"weights": (100.0, 10.0), "factor": 1e9, "space": "factors"}
    assert moved_by("geometric_median", "turned", 6, **keys) < 0.2


@pytest.mark.parametrize(
    ("name", "keys", "needed"),
    [
        ("krum", {"bad": 3}, 9),
        ("krum", {"bad": 1, "keep": 6}, 9),
        ("trimmed_mean", {"trim": 0.1}, 10),
        ("coordinate_median", {}, 3),
        ("geometric_median", {}, 3),
    ],
)
def test_a_cohort_that_is_too_small_is_refused_with_the_numbers(name, keys, needed):
    assert built(name, **keys).smallest_cohort == needed
    with pytest.raises(FederationError, match=f"has {needed - 1} usable updates, .* requires {needed}"):
        combined(name, cohort(needed - 1), **keys)
    combined(name, cohort(needed), **keys)


@pytest.mark.parametrize("trim", [0.5, 0.7, 0.0, -0.1])
def test_a_trim_of_half_or_more_is_refused_by_its_key(trim):
    with pytest.raises(SettingsError, match=r"trimmed_mean.*trim"):
        built("trimmed_mean", trim=trim)
