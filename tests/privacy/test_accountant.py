"""Epsilon against published values, and what the accountant refuses."""

import logging
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from shepherd.core import FixedSize, Poisson, Shuffled, Spending, Turns
from shepherd.errors import SettingsError
from shepherd.privacy import accountant
from shepherd.privacy.accountant import NOISE_TOLERANCE, ORDERS, epsilon, noise_for, renyi_divergence


def one(noise, sampling, steps):
    return [Spending(noise=noise, sampling=sampling, steps=steps)]


@pytest.mark.parametrize(
    ("clients", "cohort", "rounds", "noise", "value"),
    [(1_000, 50, 100, 1.0, 2.40), (10_000, 500, 100, 1.0, 3.13), (100_000, 1_000, 200, 0.7, 3.12),
     (100, 5, 20, 1.0, 0.64)],
)  # fmt: skip
def test_clients_drawn_independently(clients, cohort, rounds, noise, value):
    found = epsilon(one(noise, Poisson(chance=cohort / clients), rounds), clients**-1.1)
    assert found == pytest.approx(value, rel=0.01)


def test_one_step_of_all_is_the_analytic_gaussian_mechanism():
    """Balle and Wang 2018, Theorem 8: delta = Phi(1/2s - es) - exp(e) Phi(-1/2s - es)."""

    def phi(x):
        return math.erfc(-x / math.sqrt(2)) / 2

    for noise in (0.7, 1.0, 4.224679):
        found = epsilon(one(noise, Turns(every=1), 1), 1e-6)
        delta = phi(0.5 / noise - found * noise) - math.exp(found) * phi(-0.5 / noise - found * noise)
        assert delta == pytest.approx(1e-6, rel=0.01)
    assert epsilon(one(1.0, Turns(every=1), 1), 1e-5) == pytest.approx(4.377178, rel=0.001)


def test_turns_count_the_rounds_that_a_unit_is_in():
    alone = epsilon(one(2.0, Turns(every=1), 3), 1e-5)
    assert epsilon(one(2.0, Turns(every=10), 30), 1e-5) == alone
    assert epsilon(one(2.0, Turns(every=10), 31), 1e-5) > alone  # a fourth one has begun
    assert alone == pytest.approx(epsilon(one(2.0 / math.sqrt(3), Turns(every=1), 1), 1e-5), rel=0.001)


def test_shuffled_rounds_are_between_everybody_and_nobody_and_near_the_independent_draw():
    shuffled = epsilon(one(1.0, Shuffled(steps=20), 20), 1e-3)
    independent = epsilon(one(1.0, Poisson(chance=1 / 20), 20), 1e-3)
    turns = epsilon(one(1.0, Turns(every=20), 20), 1e-3)
    assert independent / 2 < shuffled < turns / 2
    assert epsilon(one(1.0, Shuffled(steps=20), 21), 1e-3) > shuffled


def test_a_cohort_of_fixed_size_protects_against_replacing_a_client():
    found = epsilon(one(1.0, FixedSize(size=5, of=100), 20), 1e-3)
    assert epsilon(one(1.0, Poisson(chance=0.05), 20), 1e-3) < found
    # all of them: the plain mechanism at twice the sensitivity; Rényi divergences lose some per cent
    exact = epsilon(one(0.5, Turns(every=1), 1), 1e-5)
    assert exact <= epsilon(one(1.0, FixedSize(size=100, of=100), 1), 1e-5) <= 1.1 * exact
    with pytest.raises(SettingsError, match="cannot be added"):
        epsilon([*one(1.0, FixedSize(size=5, of=100), 1), *one(1.0, Poisson(chance=0.05), 1)], 1e-3)


def test_nothing_spends_nothing():
    assert epsilon([], 1e-5) == epsilon(one(1.0, Poisson(chance=0.5), 0), 1e-5) == 0.0


def test_spending_adds_up_over_runs():
    half = one(1.5, Poisson(chance=0.1), 50)
    assert epsilon([*half, *half], 1e-5) == pytest.approx(epsilon(one(1.5, Poisson(chance=0.1), 100), 1e-5))


@pytest.mark.parametrize(
    ("examples", "batch", "steps", "target", "value"),
    [pytest.param(1_500, 16, 281, 8, 0.462, marks=pytest.mark.slow), (1_500, 32, 470, 1, 1.553)],
)
def test_the_noise_for_an_epsilon(examples, batch, steps, target, value):
    delta, sampling = examples**-1.1, Poisson(chance=batch / examples)
    found = noise_for(target, delta, sampling, steps)
    assert found == pytest.approx(value, rel=0.01)
    assert epsilon(one(found, sampling, steps), delta) <= target


@settings(max_examples=4, deadline=None)
@given(noise=st.floats(1.0, 5.0), chance=st.floats(0.01, 0.5), steps=st.integers(1, 20))
def test_more_noise_fewer_steps_and_smaller_chances_spend_less(noise, chance, steps):
    def spent(noise, chance, steps):
        return epsilon(one(noise, Poisson(chance=chance), steps), 1e-5)

    here = spent(noise, chance, steps)
    assert spent(1.2 * noise, chance, steps) <= here
    assert spent(noise, chance / 2, steps) <= here
    assert spent(noise, chance, 2 * steps) >= here


@pytest.mark.parametrize("noise", [0.0, -1.0, math.nan, math.inf, -math.inf])
def test_noise_that_is_no_number_above_0_is_refused(noise):
    with pytest.raises(SettingsError, match="the noise multiplier is"):
        Spending(noise=noise, sampling=Poisson(chance=0.5), steps=1)


@pytest.mark.parametrize("chance", [0.0, -0.1, 1.1, math.nan])
def test_a_chance_outside_of_0_to_1_is_refused(chance):
    with pytest.raises(SettingsError, match="the chance to be in a step"):
        Poisson(chance=chance)


@pytest.mark.parametrize("delta", [0.0, 1.0, -1e-5, math.nan, math.inf])
def test_delta_outside_of_0_to_1_is_refused(delta):
    with pytest.raises(SettingsError, match="delta is"):
        epsilon(one(1.0, Poisson(chance=0.5), 1), delta)


@pytest.mark.parametrize("target", [0.0, -1.0, math.nan, math.inf])
def test_a_target_that_is_no_number_above_0_is_refused(target):
    with pytest.raises(SettingsError, match="target epsilon"):
        noise_for(target, 1e-5, Poisson(chance=0.5), 1)


def test_a_target_that_no_noise_reaches_says_so():
    with pytest.raises(SettingsError, match=r"no noise multiplier up to 1000 .* raise privacy\.epsilon"):
        noise_for(1e-5, 1e-9, Turns(every=1), 100)


@pytest.mark.parametrize(
    ("target", "sampling", "steps"),
    [
        (8.0, Poisson(chance=0.1), 20),
        (0.1, Poisson(chance=0.001), 20_000),
        # next to nothing a step, of which discretised privacy losses say more than Rényi divergences do
        (0.05, Poisson(chance=0.0005), 200_000),
        (5.0, Turns(every=5), 40),
        (3.0, FixedSize(size=5, of=50), 20),
    ],
)
def test_the_noise_for_an_epsilon_is_enough_and_hardly_more(target, sampling, steps):
    found = noise_for(target, 1e-5, sampling, steps)
    for noise, enough in ((found, True), (found * (1 - 3 * NOISE_TOLERANCE), False)):
        spent = Spending(noise=noise, sampling=sampling, steps=steps)
        assert (epsilon([spent], 1e-5) <= target) is enough


def test_of_many_steps_that_spend_next_to_nothing_the_smaller_of_two_bounds_counts():
    spent = [Spending(noise=5.0, sampling=Poisson(chance=0.001), steps=20_000)]
    assert epsilon(spent, 1e-5, interval=1e-2) < accountant._composed(spent, 1e-5, 1e-2)


@pytest.mark.parametrize(
    ("noise", "steps", "chance"),
    [(1e-300, 10, 0.1), (1e-300, 10, 1.0), (1e-5, 10, 0.1), (0.01, 100, 0.1), (1.0, 10**9, 0.01)],
)
def test_what_no_computer_can_count_is_bounded_at_once(noise, steps, chance):
    assert epsilon(one(noise, Poisson(chance=chance), steps), 1e-5) > 1000


def test_more_noise_than_a_number_squares_is_counted_as_less():
    assert epsilon(one(1e300, Poisson(chance=0.5), 10), 1e-5) == pytest.approx(0.0, abs=1e-3)


@pytest.mark.parametrize("sampling", [Poisson(chance=0.1), Turns(every=1), FixedSize(size=1, of=10)])
def test_much_noise_and_little_are_accounted_for_at_once(sampling):
    """A noise of 0.01 took minutes and gigabytes, and one of 1e200 was an OverflowError."""
    spent = [epsilon(one(noise, sampling, 100), 1e-5) for noise in (0.01, 0.1, 1e5, 1e200)]
    assert math.inf > spent[0] > spent[1] > 100
    assert 0 <= spent[3] <= spent[2] < 0.1


def test_a_bound_above_which_epsilon_says_nothing_is_no_less_than_the_exact_account():
    gaussian = Turns(every=1)
    for noise in (0.06, 0.07):
        exact = 1 / (2 * noise**2)  # half of the losses are above this, so epsilon is, too
        assert exact < epsilon(one(noise, gaussian, 1), 1e-5) < 2 * exact


def test_shuffled_rounds_have_no_epsilon_at_a_delta_that_nothing_reaches():
    assert epsilon(one(1.0, Shuffled(steps=10), 10), 1e-300) == math.inf


def test_shuffled_rounds_that_spend_next_to_nothing_are_counted_at_once():
    """A tenth of an epsilon of 0 was never reached."""
    assert 0 <= epsilon(one(10.0, Shuffled(steps=4), 4), 0.1) <= 0.01


def test_the_rounds_of_a_shuffled_epoch_are_accounted_for_once(monkeypatch):
    import PLD_accounting

    asked = []
    monkeypatch.setattr(
        PLD_accounting,
        "gaussian_allocation_epsilon_range",
        lambda **given: (asked.append(given), (1.0, 0.5))[1],
    )
    for steps in (11, 12, 20):
        epsilon(one(1.25, Shuffled(steps=10), steps), 1e-4)
    assert [each["num_epochs"] for each in asked] == [2]


# --- Skellam noise on whole numbers


def whole(noise, levels, steps=1, sampling=None):
    return [Spending(noise=noise, sampling=sampling or Turns(every=1), steps=steps, levels=levels)]


def exact_divergence(order, shift, variance):
    """The Rényi divergence of Skellam noise from itself shifted by a whole number, by its probabilities."""
    reach = math.ceil(shift * order + 60 + 12 * math.sqrt(variance) * order)
    values = np.arange(-reach, reach + 1)
    here = stats.skellam.logpmf(values, variance / 2, variance / 2)
    there = stats.skellam.logpmf(values - shift, variance / 2, variance / 2)
    both = np.isfinite(here) & np.isfinite(there)
    terms = order * here[both] - (order - 1) * there[both]
    top = terms.max()
    return (top + math.log(np.exp(terms - top).sum())) / (order - 1)


@pytest.mark.parametrize("levels", [1, 2, 3, 8])
@pytest.mark.parametrize("noise", [0.5, 0.8, 1.0, 2.0])
@pytest.mark.parametrize("order", [2, 3, 6])
def test_the_bound_is_above_the_divergence_of_one_number_and_near_it(levels, noise, order):
    """Of one number the L1 norm is the L2 norm, and the bound has its square: it is near for few levels."""
    exact = exact_divergence(order, levels, (noise * levels) ** 2)
    bound = renyi_divergence(order, noise, levels)
    assert exact < bound
    if (noise * levels) ** 2 >= 4:
        assert bound < 2.5 * exact


def test_the_bound_holds_for_many_numbers_of_one_step_each():
    """Four numbers that are one step off: twice the L2 norm of one, four times the divergence."""
    for noise in (0.5, 1.0, 2.0):
        for order in (2, 4, 8):
            exact = 4 * exact_divergence(order, 1, (2 * noise) ** 2)
            assert exact < renyi_divergence(order, noise, 2)


@given(noise=st.floats(0.1, 50.0), order=st.sampled_from(ORDERS))
def test_the_bound_falls_to_that_of_gaussian_noise_as_the_steps_become_finer(noise, order):
    gaussian = renyi_divergence(order, noise, 0)
    assert gaussian == pytest.approx(order / (2 * noise**2))
    found = [renyi_divergence(order, noise, levels) for levels in (7, 127, 32767, 2**23)]
    assert found == sorted(found, reverse=True)
    assert found[-1] >= gaussian
    assert found[-1] == pytest.approx(gaussian, rel=1e-6 + 2e-12 / noise**2)


def test_fine_steps_spend_what_gaussian_noise_does_by_renyi_divergences():
    """And so a little more than by the exact account of Gaussian noise."""
    for noise, steps in ((1.0, 1), (2.0, 20), (5.0, 100)):
        skellam = epsilon(whole(noise, 2**20, steps), 1e-5)
        exact = epsilon(one(noise, Turns(every=1), steps), 1e-5)
        assert exact < skellam < 1.12 * exact
    coarse = epsilon(whole(1.0, 7), 1e-5)
    assert coarse > 1.01 * epsilon(whole(1.0, 2**20), 1e-5)


def test_a_value_by_hand_for_skellam_noise():
    """Order 5 of 3 steps at noise 1 and 10 levels: 3 (5/2 + 15/400), converted as in Canonne et al. 2020."""
    assert 3 * renyi_divergence(5, 1.0, 10) == pytest.approx(3 * (2.5 + 0.0375))
    orders = np.array(ORDERS, float)
    spent = 3 * (orders / 2 + np.minimum((2 * orders + 5) / 400, 1.5))
    converted = spent + np.log1p(-1 / orders) - (math.log(1e-5) + np.log(orders)) / (orders - 1)
    assert epsilon(whole(1.0, 10, 3), 1e-5) == pytest.approx(converted.min(), rel=1e-9)


def test_nothing_is_gained_by_a_draw_and_both_kinds_of_noise_add_up():
    drawn = epsilon(whole(1.0, 127, 4, Poisson(chance=0.1)), 1e-5)
    assert drawn == epsilon(whole(1.0, 127, 4), 1e-5)
    both = epsilon([*whole(1.0, 127), *one(1.0, Turns(every=1), 1)], 1e-5)
    assert epsilon(whole(1.0, 127), 1e-5) < both < epsilon(whole(1.0, 127, 2), 1e-5)


def test_the_noise_for_an_epsilon_is_found_for_skellam_noise_too():
    for levels in (127, 2**15):
        found = noise_for(2.0, 1e-5, Turns(every=1), 10, levels)
        assert epsilon(whole(found, levels, 10), 1e-5) <= 2.0
        assert epsilon(whole(found * 0.998, levels, 10), 1e-5) > 2.0


def test_little_skellam_noise_is_none():
    assert epsilon(whole(1e-4, 127), 1e-5) == math.inf
    with pytest.raises(SettingsError, match="steps of a grid"):
        whole(1.0, -1)


# --- what others log


@pytest.mark.parametrize(
    "spent",
    [
        one(1.0, Poisson(chance=0.5), 2),
        one(1.0, FixedSize(size=5, of=10), 2),
        whole(1.0, 127),
    ],
)
def test_an_account_leaves_the_root_logger_as_it_was(monkeypatch, spent):
    """absl gives a root logger without handlers one that prints, and each line of a run came twice."""
    monkeypatch.setattr(logging.root, "handlers", [])
    assert epsilon(spent, 0.2) >= 0
    assert logging.root.handlers == []
