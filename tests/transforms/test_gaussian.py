"""Client-level noise: its moments, its fixed denominator, empty rounds, and what clip and noise promise."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.quadratic import Quadratic, bits, chosen, drawn, method, update_of
from tests.rounds.test_loop import Scripted

from shepherd.aggregations import mean
from shepherd.algorithms import fedavg
from shepherd.config import validated
from shepherd.core import (
    Adapter,
    Aggregation,
    Algorithm,
    Context,
    Failure,
    FromSystem,
    Payload,
    Poisson,
    Seeded,
    Transform,
    Turns,
    Update,
    chain,
)
from shepherd.errors import FederationError, QuorumNotMet, SettingsError, UpdateRefused
from shepherd.rounds import report_row, rounds, start
from shepherd.transforms import clip, gaussian, gaussian_adaptive, gaussian_correlated

CONTEXT = Context(clients=20, share=0.25, rounds=3)
WIDE = {"layers.0.q_proj.lora_A.weight": (20_000, 2)}
MECHANISMS = [gaussian, gaussian_adaptive, gaussian_correlated]


def of_length(client, length, seed=0, shapes=WIDE):
    """An update in some direction, of this length."""
    delta = drawn(seed, shapes)
    return Update(round=0, clients=(client,), delta=delta.times(length / delta.norm()), weight=1.0)


def mean_of(updates):
    names = tuple(name for update in updates for name in update.clients)
    delta = {n: sum(u.delta[n].astype(float) for u in updates) / len(updates) for n in updates[0].delta}
    extra = {n: sum(u.extra[n].astype(float) for u in updates) / len(updates) for n in updates[0].extra}
    return Update(
        round=0, clients=names, weight=float(len(names)), delta=Adapter(delta), extra=Adapter(extra)
    )


def nobody(shapes=WIDE, extra=None):
    zeros = Adapter({name: np.zeros(shape) for name, shape in shapes.items()})
    return Update(round=0, clients=(), weight=0.0, delta=zeros, extra=Adapter(extra or {}))


def length(update):
    parts = [t.astype(float).ravel() for t in (*update.delta.values(), *update.extra.values())]
    return float(np.linalg.norm(np.concatenate(parts)))


def test_an_aggregation_that_does_not_say_that_it_is_a_mean_is_refused():
    """A plug-in that forgets to say what it is, gets no noise that is made for a mean."""
    noisy = gaussian.build(gaussian.Config())
    with pytest.raises(SettingsError, match="adds its noise to a mean"):
        method(transform=noisy, aggregation=Aggregation(combine=mean.mean))
    assert method(transform=noisy, aggregation=mean.AGGREGATION).is_private


# --- the noise


@pytest.mark.parametrize("draws", [Seeded(0), FromSystem()])
@pytest.mark.parametrize("cohort", [0, 1, 7])
def test_the_noise_has_the_moments_of_a_normal_draw_and_the_denominator_is_fixed(cohort, draws):
    """40,000 numbers: the mean is within 5 deviations, the deviation within 2 %, the kurtosis near 3."""
    made = gaussian.build(gaussian.Config(norm=2.0, noise=1.5))
    updates = [of_length(f"c{k}", 2.0, k) for k in range(cohort)]
    sent = mean_of(updates) if updates else nobody()
    released, _ = made.on_server(sent, made.init(CONTEXT), draws)
    name, shape = next(iter(WIDE.items()))
    exact = sum((u.delta[name].astype(float) for u in updates), np.zeros(shape))
    noise = released.delta[name] * 5.0 - exact  # a quarter of 20 clients, whoever was there
    assert noise.std() == pytest.approx(3.0, rel=0.02)
    assert abs(noise.mean()) < 5 * 3.0 / np.sqrt(noise.size)
    assert np.mean((noise / noise.std()) ** 4) == pytest.approx(3.0, abs=0.15)
    assert released.clients == ()
    assert released.weight == 5.0


def test_all_that_leaves_gets_noise_of_its_own():
    made = gaussian.build(gaussian.Config())
    sent = replace(nobody(), extra=Adapter({"extra": np.zeros(20_000)}))
    released, _ = made.on_server(sent, made.init(CONTEXT), Seeded(1))
    (delta,), (extra,) = released.delta.values(), released.extra.values()
    assert 5 * extra.std() == pytest.approx(1.0, rel=0.03)
    assert abs(np.corrcoef(delta.ravel()[:20_000], extra)[0, 1]) < 0.05


def test_two_rounds_have_different_noise_from_the_system():
    made = gaussian.build(gaussian.Config())
    one, two = (made.on_server(nobody(), made.init(CONTEXT), FromSystem())[0] for _ in range(2))
    assert bits(one.delta) != bits(two.delta)


@pytest.mark.parametrize("part", MECHANISMS)
def test_there_is_enough_noise_for_rounding_and_for_what_arrival_tolerates(part):
    """The noise on the sum is at least what is accounted, for the longest update that is accepted."""
    made = part.build(part.Config(noise=1.0))
    context = Context(clients=10_000, share=0.1)
    state = made.init(context)
    ones = type("Ones", (), {"standard_normal": staticmethod(lambda shape=(): np.ones(shape))})
    draws = type("Draws", (), {"generator": lambda self, *purpose: ones})()
    extra = {name: np.zeros(shape) for name, shape in made.adds.items()}
    released, _ = made.on_server(nobody({"w": (1,)}, extra), state, draws)
    assert float(released.delta["w"][0]) * 1000 >= clip.NORM_TOLERANCE * (1 + 10_000 * 2**-24)


# --- what a client sends and what is accepted


@pytest.mark.parametrize("part", MECHANISMS)
@given(seed=st.integers(0, 2**32), scale=st.floats(1e-6, 1e6), norm=st.floats(1e-3, 1e3))
def test_nothing_longer_leaves_and_no_weight_or_metric(part, seed, scale, norm):
    made = part.build(part.Config(norm=norm))
    state = made.init(CONTEXT)
    update = replace(
        update_of("c", seed, weight=9.0),
        delta=drawn(seed, scale=scale),
        extra=drawn(seed + 1, scale=scale),
        metrics={"loss": 3.0},
    )
    sent = made.on_client(update, made.public(state), Seeded(0))
    bare = {n: t for n, t in sent.extra.items() if n not in made.adds}
    assert length(replace(sent, extra=Payload(bare))) <= norm
    assert (sent.weight, dict(sent.metrics)) == (1.0, {})
    arrived = made.on_arrival(sent, state)
    assert (bits(arrived.delta), arrived.weight) == (bits(sent.delta), 1.0)


@pytest.mark.parametrize("part", MECHANISMS)
@pytest.mark.parametrize("times", [1.001, 1e6, -1.1])
def test_a_longer_update_is_refused(part, times):
    made = part.build(part.Config())
    state = made.init(CONTEXT)
    sent = made.on_client(of_length("c", 3.0), made.public(state), Seeded(0))
    with pytest.raises(UpdateRefused, match="clip it at the client"):
        made.on_arrival(replace(sent, delta=sent.delta.times(times)), state)


@pytest.mark.parametrize("part", MECHANISMS)
def test_two_clients_in_one_update_are_refused(part):
    made = part.build(part.Config())
    state = made.init(CONTEXT)
    sent = made.on_client(of_length("c", 0.5), made.public(state), Seeded(0))
    with pytest.raises(UpdateRefused, match="send one update per client"):
        made.on_arrival(replace(sent, clients=("c", "d")), state)


def test_what_a_client_claims_to_weigh_does_not_count():
    made = gaussian.build(gaussian.Config())
    state = made.init(CONTEXT)
    heavy = replace(of_length("c", 0.5), weight=1e9, metrics={"loss": 2.0})
    arrived = made.on_arrival(heavy, state)
    assert (arrived.weight, dict(arrived.metrics)) == (1.0, {})


@pytest.mark.parametrize("key", ["norm", "noise"])
@pytest.mark.parametrize("value", [0.0, -1.0, float("inf"), float("nan"), True, "1"])
@pytest.mark.parametrize("part", MECHANISMS)
def test_a_parameter_that_is_no_number_above_0_is_refused(part, key, value):
    with pytest.raises(SettingsError, match=key):
        validated(part.Config, {key: value}, "the transform")


@pytest.mark.parametrize("part", MECHANISMS)
def test_a_norm_that_leaves_nothing_of_a_change_is_refused(part):
    assert part.Config(norm=1e-6).norm == 1e-6
    with pytest.raises(SettingsError, match="norm"):
        validated(part.Config, {"norm": 1e-300}, "the transform")


# --- adaptive clips


def test_the_count_and_the_sum_together_have_the_noise_that_is_accounted():
    for noise, count_noise in ((1.0, 5.0), (0.7, 0.5), (3.0, 2.0)):
        own = gaussian_adaptive.noise_of_sum(noise, count_noise)
        assert own**-2 + (2 * count_noise) ** -2 == pytest.approx(noise**-2)
        assert own > noise
    made = gaussian_adaptive.build(gaussian_adaptive.Config(noise=1.3))
    assert made.mechanism.spent(Poisson(chance=0.1), 7).noise == 1.3


@pytest.mark.parametrize(("context", "due"), [(CONTEXT, 1.0), (Context(clients=1000, share=0.1), 5.0)])
def test_the_noise_on_the_count_is_a_twentieth_of_the_cohort_or_the_multiplier(context, due):
    state = gaussian_adaptive.build(gaussian_adaptive.Config()).init(context)
    assert float(state["count_noise"]) == due


def test_too_little_noise_on_the_count_is_refused():
    with pytest.raises(SettingsError, match=r"set count_noise above 0\.5"):
        gaussian_adaptive.build(gaussian_adaptive.Config(count_noise=0.5))


def test_the_norm_goes_to_the_quantile_of_the_norms():
    """Ten thousand clients with norms from 0 to 10: half of them are shorter than 5."""
    config = gaussian_adaptive.Config(norm=0.1, noise=1.0, quantile=0.5)
    made = gaussian_adaptive.build(config)
    lengths = np.linspace(0, 10, 10_000)
    state = made.init(Context(clients=10_000, share=1.0))
    for step in range(150):
        within = np.where(lengths <= float(state["norm"]), 0.5, -0.5).mean()
        sent = Update(
            round=0, clients=("c",) * 10_000, weight=1e4, delta=Adapter({"w": [0.0]}),
            extra=Adapter({gaussian_adaptive.WITHIN: [within]}),
        )  # fmt: skip
        released, state = made.on_server(sent, state, Seeded(step))
        assert not released.extra
    assert float(state["norm"]) == pytest.approx(5.0, rel=0.1)


def test_the_count_is_the_clients_own_whatever_its_mean_was_rounded_to():
    """Else one client could move the count by more than the half that its noise is made for."""
    config = gaussian_adaptive.Config(count_noise=1e-6, noise=1e-6, norm=1.0)
    made = gaussian_adaptive.build(config)
    count, state = 999_999, None
    norms = []
    for yes in (600_000, 600_001):
        state = made.init(Context(clients=count, share=1.0))
        within = np.array([(yes - count / 2) / count], np.float32)
        sent = Update(
            round=0, clients=("c",) * count, weight=float(count), delta=Adapter({"w": [0.0]}),
            extra=Adapter({gaussian_adaptive.WITHIN: within}),
        )  # fmt: skip
        norms.append(float(made.on_server(sent, state, Seeded(0))[1]["norm"]))
        due = gaussian_adaptive.followed(1.0, yes / count, config)
        assert norms[-1] == pytest.approx(due, rel=1e-11)
    assert norms[0] != norms[1]


@pytest.mark.parametrize("part", MECHANISMS)
@pytest.mark.parametrize("key", ["norm", "noise"])
def test_what_would_leave_float32_is_refused_before_a_round(part, key):
    with pytest.raises(SettingsError, match=f"{key}.*1000000"):
        validated(part.Config, {key: 1e30}, "the transform")


def test_one_step_of_the_norm_by_hand():
    config = gaussian_adaptive.Config(norm=2.0, quantile=0.5, rate=0.2)
    assert gaussian_adaptive.followed(2.0, 1.0, config) == pytest.approx(2.0 * np.exp(-0.1))
    assert gaussian_adaptive.followed(2.0, 0.0, config) == pytest.approx(2.0 * np.exp(0.1))
    assert gaussian_adaptive.followed(2.0, -1e9, config) == pytest.approx(gaussian_adaptive.MAX_NORM)


@pytest.mark.parametrize("claim", [[0.4], [2.0], [np.nan], [0.5, 0.5], None])
def test_a_client_says_of_its_length_one_of_two_things(claim):
    made = gaussian_adaptive.build(gaussian_adaptive.Config())
    state = made.init(CONTEXT)
    sent = made.on_client(of_length("c", 3.0), made.public(state), Seeded(0))
    assert float(sent.extra[gaussian_adaptive.WITHIN][0]) == -0.5
    extra = {} if claim is None else {gaussian_adaptive.WITHIN: np.array(claim, np.float32)}
    with pytest.raises(UpdateRefused, match="apply the transform gaussian_adaptive"):
        made.on_arrival(replace(sent, extra=Payload(extra)), state)


@pytest.mark.parametrize("norm", [np.nan, np.inf, 0.0, -1.0, 1e30])
def test_a_client_takes_no_norm_that_is_none(norm):
    made = gaussian_adaptive.build(gaussian_adaptive.Config())
    with pytest.raises(UpdateRefused, match="correct the server"):
        made.on_client(of_length("c", 3.0), {"norm": np.array(norm)}, Seeded(0))


def test_only_the_norm_is_public():
    made = gaussian_adaptive.build(gaussian_adaptive.Config())
    assert list(made.public(made.init(CONTEXT))) == ["norm"]
    made = gaussian_correlated.build(gaussian_correlated.Config())
    assert made.public(made.init(CONTEXT)) == {}


# --- correlated noise, against dense matrices


def factor(rounds, bands):
    """C as a dense matrix, its coefficients by the binomial formula."""
    from math import comb

    dense = np.zeros((rounds, rounds))
    for row in range(rounds):
        for column in range(max(0, row - bands + 1), row + 1):
            j = row - column
            dense[row, column] = comb(2 * j, j) / 4**j
    return dense


@pytest.mark.parametrize("bands", [1, 2, 4, 7])
def test_the_noise_of_all_rounds_is_the_inverse_factor_times_independent_draws(bands):
    config = gaussian_correlated.Config(norm=2.0, noise=1.5, bands=bands)
    made, shapes = gaussian_correlated.build(config), {"w": (3, 4)}
    state, found, drawn_ = made.init(Context(clients=1)), [], []
    for round in range(9):
        drawn_.append(Seeded(round).generator("noise").standard_normal((3, 4)))
        released, state = made.on_server(nobody(shapes), state, Seeded(round))
        found.append(released.delta["w"])
    dense = factor(9, bands)
    column = np.linalg.norm(dense, axis=0).max()
    due = np.tensordot(np.linalg.inv(dense), np.array(drawn_), 1) * 1.5 * 2.0 * column
    np.testing.assert_allclose(np.array(found), due, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("bands", [2, 4])
def test_who_takes_part_k_times_moves_the_whole_by_at_most_root_k_columns(bands):
    """The sensitivity of C times the contributions, over every schedule that keeps the separation."""
    dense, rounds = factor(12, bands), 12
    column = np.linalg.norm(dense, axis=0).max()
    rng = np.random.default_rng(0)
    for _ in range(200):
        at = rng.integers(bands)
        times = []
        while at < rounds:
            times.append(at)
            at += bands + rng.integers(3)
        moved = np.zeros((rounds, 5))
        own = rng.standard_normal((len(times), 5))
        moved[times] = own / np.linalg.norm(own, axis=1, keepdims=True)
        assert np.linalg.norm(dense @ moved) <= np.sqrt(len(times)) * column * (1 + 1e-12)


def test_the_sum_over_the_rounds_has_less_noise_than_with_independent_draws():
    dense = factor(40, 10)
    column = np.linalg.norm(dense, axis=0).max()
    sums = np.tril(np.ones((40, 40)))
    correlated = np.linalg.norm(sums @ np.linalg.inv(dense), axis=1) * column
    assert correlated[-1] < 0.6 * np.sqrt(40)


def test_correlated_noise_needs_turns_that_are_far_enough_apart():
    made = gaussian_correlated.build(gaussian_correlated.Config(bands=4, noise=2.0))
    spent = made.mechanism.spent(Turns(every=4), 10)
    assert (spent.noise, spent.sampling, spent.steps) == (2.0, Turns(every=4), 10)
    for sampling in (Turns(every=3), Poisson(chance=0.1)):
        with pytest.raises(SettingsError, match="at most once in 4 rounds in a row"):
            made.mechanism.spent(sampling, 10)


# --- in the round loop


def run(federation, transform, *, until=1, context=CONTEXT, select=None, quorum=1.0, **given_):
    made = method(transform=transform)
    return rounds(
        made,
        federation,
        start(made, drawn(0), context),
        until=until,
        select=select or chosen("all"),
        quorum=quorum,
        seed=0,
        context=replace(context, clients=len(federation.clients())),
        **given_,
    )


def moved_by(state):
    return {n: state.adapter[n].astype(float) - drawn(0)[n] for n in state.adapter}


def short(client, seed):
    delta = drawn(seed)
    return replace(update_of(client, seed), delta=delta.times(0.5 / delta.norm()))


def tiny_noise():
    return gaussian.build(gaussian.Config(noise=1e-9))


def test_a_client_that_fails_or_is_refused_counts_as_zero_and_the_denominator_stays():
    good = [short("c0", 1), short("c3", 2)]
    answers = [
        good[0],
        Failure(client="c1", reason="no disk"),
        replace(update_of("c2", 9), delta=drawn(9).times(1e3)),  # not clipped
        good[1],
    ]
    federation = Scripted(lambda broadcast, cohort: iter(answers), clients=20)
    ((state, report),) = run(federation, tiny_noise())
    for name, step in moved_by(state).items():
        due = sum(update.delta[name].astype(float) for update in good) / 5.0  # a quarter of 20 are expected
        np.testing.assert_allclose(step, due, atol=1e-5)
    assert report_row(report) == {"round": 1}


@pytest.mark.parametrize("select", [chosen("all"), lambda clients, round, seed: ()])
@pytest.mark.parametrize("part", MECHANISMS)
def test_a_round_without_any_update_releases_noise(part, select):
    federation = Scripted(
        lambda broadcast, cohort: iter([Failure(client=c, reason="no disk") for c in cohort]), clients=4
    )
    ((state, report),) = run(federation, part.build(part.Config()), select=select)
    assert all(np.all(step != 0) for step in moved_by(state).values())
    assert report_row(report) == {"round": 1}


def test_noise_and_cohorts_come_from_the_system_unless_they_are_given():
    def of(**given_):
        federation = Quadratic(fedavg.ALGORITHM, transform, clients=30)
        loop = run(federation, transform, select=chosen("poisson", share=0.5), **given_)
        return next(loop)

    transform = chain(gaussian.build(gaussian.Config()))
    (one, first), (two, second) = of(), of()
    assert bits(one.adapter) != bits(two.adapter)
    assert first.cohort != second.cohort
    (one, first), (two, second) = (of(secret=3, noise=Seeded(3)) for _ in range(2))
    assert bits(one.adapter) == bits(two.adapter)
    assert first.cohort == second.cohort


def test_other_clients_than_the_noise_was_made_for_are_refused():
    made = method(transform=tiny_noise())
    loop = rounds(
        made, Quadratic(fedavg.ALGORITHM, tiny_noise(), clients=3), start(made, drawn(0), CONTEXT), until=1,
        select=chosen("all"), quorum=1.0, seed=0, context=CONTEXT,
    )  # fmt: skip
    with pytest.raises(FederationError, match="made for 20 clients, and there are 3"):
        next(loop)


def test_a_round_that_an_owner_would_not_have_releases_nothing_and_says_nobody():
    federation = Scripted(
        lambda broadcast, cohort: iter([short("c0", 1), short("c1", 2)]), clients=20, fewest=(3,)
    )
    with pytest.raises(QuorumNotMet, match="nothing of the round is released") as found:
        list(run(federation, tiny_noise()))
    assert "c0" not in str(found.value)


def test_a_small_cohort_leaves_nobody_out_because_of_the_others():
    """To drop one client for the absence of another would change the sum by both."""
    federation = Scripted(lambda broadcast, cohort: iter([short("c0", 1)]), clients=20, fewest=(2,))
    with pytest.raises(QuorumNotMet):
        list(run(federation, tiny_noise(), select=lambda clients, round, seed: ("c0",)))


# --- what breaks the promise


def test_what_another_part_does_after_the_check_is_checked_again():
    """A transform that decodes to something longer, listed before the mechanism and so called after it."""

    def longer(update, state):
        return replace(update, delta=update.delta.times(100.0))

    transform = chain(Transform(on_arrival=longer), tiny_noise())
    federation = Quadratic(fedavg.ALGORITHM, transform, clients=20)
    ((state, report),) = run(federation, transform)
    assert len(report.failures) == 20
    assert all(np.abs(step).max() < 1e-6 for step in moved_by(state).values())


def test_a_transform_that_alters_updates_cannot_come_after_the_noise():
    with pytest.raises(SettingsError, match="list the one that adds noise last"):
        chain(tiny_noise(), clip.build(clip.Config()))
    chain(clip.build(clip.Config()), tiny_noise())
    chain(tiny_noise(), Transform(alters=False))


def test_a_bound_of_another_transform_would_meet_what_is_said_of_the_length():
    with pytest.raises(SettingsError, match="remove the first"):
        chain(clip.build(clip.Config()), gaussian_adaptive.build(gaussian_adaptive.Config()))


def test_an_algorithm_that_corrects_updates_on_arrival_is_refused():
    longer = Algorithm(accept=lambda update, counts: update)
    with pytest.raises(SettingsError, match="after its norm was checked"):
        method(longer, transform=tiny_noise())


def test_correlated_noise_needs_the_same_tensors_in_each_round():
    from shepherd.algorithms import fed_sb, ffa_lora, rolora

    transform = gaussian_correlated.build(gaussian_correlated.Config())
    for algorithm in (rolora, fed_sb):
        with pytest.raises(SettingsError, match="other tensors in other rounds"):
            method(algorithm.build(algorithm.Config()), transform=transform)
    method(ffa_lora.build(ffa_lora.Config()), transform=transform)


@pytest.mark.parametrize("part", MECHANISMS)
def test_without_noise_or_without_the_clip_a_test_of_the_released_sum_tells(part):
    """The two faults of a mechanism that matter, as a distance: how far one client can be told from none."""
    made = part.build(part.Config(norm=1.0, noise=1.0))
    state = made.init(Context(clients=2, share=0.5))
    sent = made.on_client(of_length("c", 1e3), made.public(state), Seeded(0))
    direction = sent.delta[next(iter(WIDE))].astype(float)
    direction /= np.linalg.norm(direction)

    def along(update):
        empty = {n: np.zeros(s) for n, s in made.adds.items()}
        return [
            float((made.on_server(update or nobody(WIDE, empty), state, Seeded(seed))[0]
                   .delta[next(iter(WIDE))] * direction).sum())
            for seed in range(300)
        ]  # fmt: skip

    present, absent = along(made.on_arrival(sent, state)), along(None)
    spread = np.std(absent)
    # the released sum of one client against none is N(1, s^2) against N(0, s^2), with s at least the noise
    assert (np.mean(present) - np.mean(absent)) / spread == pytest.approx(1.0, abs=0.35)
    assert spread > 0.8
