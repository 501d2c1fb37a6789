"""How much privacy budget a run spends: epsilon at delta, by privacy loss distributions.

    (epsilon, delta)-DP:  Pr[M(D) in S] <= exp(epsilon) Pr[M(D') in S] + delta

`dp-accounting` composes the steps; random allocation, where each unit is in exactly one step of an epoch, is
`PLD_accounting`'s (arXiv 2602.17284). Skellam noise on whole numbers is counted by Rényi divergences
(arXiv 2110.04995), and so is what is added up with it. Neighbouring data differ by one unit: added or
removed; with a fixed number of units in a step, replaced; or, for Skellam noise, one that contributes zero
instead. This is the only module that imports either package.
"""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cache, partial
from importlib.util import find_spec
from typing import Any

from shepherd.core.spending import FixedSize, Poisson, Sampling, Shuffled, Spending, Turns
from shepherd.errors import SettingsError
from shepherd.io.phrases import delta_text
from shepherd.version import install

MIN_NOISE, MAX_NOISE = 0.2, 1000.0
"""Noise multipliers that `noise_for` returns."""
NOISE_TOLERANCE = 5e-4
"""Relative tolerance of `noise_for`; it never returns too little noise."""
BRACKET = 0.2  # step of the search for a range, as a natural logarithm
INTERVAL = 1e-4
"""Discretisation of privacy losses, in nats; dp-accounting's default."""
MIN_COUNTED, MAX_COUNTED = 1e-3, 1e6
"""Noise multipliers that are accounted for: less counts as none, and more as the largest."""
LARGE = 100.0
"""Above this epsilon Rényi divergences are enough: exact accounts of so little noise take hours."""
SMALL = 0.1
"""Below about this epsilon, random allocation is counted to 0.01 too much at most, and above it to a tenth of
itself: where nothing is spent, no share of it is ever reached."""
DELTA_POWER = -1.1
MAX_DELTA = 1e-5
"""Largest delta by default: n^-1.1 of few units is so large that no epsilon would say anything."""
WEAK_DELTA = 1e-3
"""A delta above this says little, and is said to."""
ORDERS = (*range(2, 65), *(round(2 ** (power / 4)) for power in range(25, 61)))
"""Orders of the Rényi divergences of Skellam noise: whole numbers, for which the bound is proven."""
TINY = 1e-12  # an epsilon of 0 has a logarithm, too

Account = Callable[[Sequence[Spending], float], float]


def require() -> None:
    """Raise SettingsError, with what to install, if the accountant's packages are missing."""
    if not (find_spec("dp_accounting") and find_spec("PLD_accounting")):
        raise SettingsError(
            "accounting for differential privacy requires the packages dp-accounting and PLD_accounting;"
            f" install with {install('privacy')}"
        )


def epsilon(spent: Iterable[Spending], delta: float, interval: float = INTERVAL) -> float:
    """The smallest epsilon that the accountant can show for all of this together; infinity if none.

    Args:
        delta: in (0, 1).
        interval: discretisation of privacy losses; a larger one is quicker and never gives too little.

    Raises:
        SettingsError: delta is not in (0, 1); the packages are missing; or steps of different neighbouring
            relations are added up, for which there is no one guarantee.
    """
    _require_delta(delta)
    require()
    every = [each for each in spent if each.steps]
    relations = {replaces(each.sampling) for each in every}
    if not every:
        return 0.0
    if len(relations) > 1:
        raise SettingsError(
            "steps with a fixed number of units, whose privacy is that of replacing one, cannot be added to"
            ' others; use one selection, such as [selection] name = "poisson"'
        )
    if any(each.noise < MIN_COUNTED for each in every):
        return math.inf
    every = [replace(each, noise=min(each.noise, MAX_COUNTED)) for each in every]
    if any(each.levels for each in every):
        return _of_whole_numbers(every, delta)
    quick = _by_renyi([_without_draw(each) for each in every], delta)
    if not quick <= LARGE:
        return quick
    if any(isinstance(each.sampling, Shuffled) for each in every):
        return _of_shuffled(every, delta)
    if any(replaces(each.sampling) for each in every):  # for which there are no privacy loss distributions
        return quick
    # both are bounds; of many steps that spend next to nothing each, the second is too large by rounding
    return min(quick, _composed(every, delta, interval))


def noise_for(
    target: float,
    delta: float,
    sampling: Sampling,
    steps: int,
    levels: int = 0,
    *,
    interval: float = INTERVAL,
) -> float:
    """The smallest noise multiplier with which `steps` steps spend at most `target` epsilon at `delta`.

    Args:
        levels: as for `Spending`.
        interval: as for `epsilon`.

    Raises:
        SettingsError: the target is not a finite number above 0, or no noise up to `MAX_NOISE` reaches it.
    """
    if not 0.0 < target < math.inf:
        raise SettingsError(f"the target epsilon is {target}; give a finite number above 0")

    def spent(noise: float) -> Spending:
        return Spending(noise=noise, sampling=sampling, steps=steps, levels=levels)

    exact: Account = partial(epsilon, interval=interval)
    if exact([spent(MAX_NOISE)], delta) > target:
        raise SettingsError(
            f"no noise multiplier up to {MAX_NOISE:g} gives epsilon {target:g} at delta {delta:g} over"
            f" {steps} steps; raise privacy.epsilon, or what --epsilon asks for, or plan fewer rounds"
        )
    # ten times as quick, and as a rule as good: only many steps that spend next to nothing each need more
    found = _least_noise(partial(epsilon, interval=10 * interval), spent, target, delta)
    if found > MIN_NOISE and exact([spent(found * (1 - 2 * NOISE_TOLERANCE))], delta) <= target:
        return _least_noise(exact, spent, target, delta)
    return found


def _least_noise(account: Account, spent: Callable[[float], Spending], target: float, delta: float) -> float:
    """The smallest noise multiplier with at most `target` epsilon by an account, from `MIN_NOISE`.

    Args:
        spent: what is spent with a noise multiplier; with `MAX_NOISE`, at most the target.
    """
    from scipy.optimize import brentq

    @cache
    def above(power: float, account: Account = account) -> float:
        """How far log epsilon is above the target's, at this log of the noise: falling, and nearly a line."""
        return math.log(max(account([spent(math.exp(power))], delta), TINY)) - math.log(target)

    low, high = math.log(MIN_NOISE), math.log(MAX_NOISE)
    one = spent(MAX_NOISE)
    if not (one.levels or isinstance(one.sampling, Shuffled)) and above(low, _by_renyi) > 0:
        # quick, and never too little; little noise takes long to account for exactly, so the search is above
        high = float(brentq(above, low, high, args=(_by_renyi,), xtol=NOISE_TOLERANCE)) + NOISE_TOLERANCE
    low = high - BRACKET
    while above(low) <= 0:
        if low < math.log(MIN_NOISE):
            return MIN_NOISE
        low, high = low - BRACKET, low
    found = float(brentq(above, low, high, xtol=NOISE_TOLERANCE))
    while above(found) > 0:
        found += NOISE_TOLERANCE
    return math.exp(found)


def rounded_up(noise: float) -> float:
    """A noise multiplier rounded up in its fourth digit, so that what is printed is enough.

    >>> rounded_up(0.62341), rounded_up(12.0), rounded_up(1234.1)
    (0.6235, 12.0, 1235.0)
    """
    scale = 10.0 ** (3 - math.floor(math.log10(noise)))
    return math.ceil(noise * scale) / scale


def default_delta(units: int) -> float:
    """The delta for n units where none is asked for: n^-1.1, which is below 1 / n, and 1e-5 at most.

    >>> default_delta(3), round(default_delta(100_000), 8)
    (1e-05, 3.16e-06)
    """
    return min(MAX_DELTA, float(units**DELTA_POWER))


def of_large_delta(delta: float, units: int = 0, what: str = "", key: str = "privacy.delta") -> Iterator[str]:
    """What to say of a delta that is large in itself, or above 1 over all units: one sentence, or none.

    Args:
        units: all of which one is protected; 0 where nobody knows.
        what: what they are.
    """
    if delta > WEAK_DELTA or delta * units > 1.0:
        above = f", and above 1 / {units:,}, over all {what}" if delta * units > 1.0 else ""
        small = default_delta(max(1, units))
        yield (
            f"Delta {delta_text(delta)} is large{above}: it is about the chance that epsilon does not hold;"
            f" set {key} = {small:.1g}, and see what epsilon is."
        )


def replaces(sampling: Sampling) -> bool:
    """Whether neighbouring data replace one unit, rather than add or remove one."""
    return isinstance(sampling, FixedSize)


def renyi_divergence(order: int, noise: float, levels: int) -> float:
    """An upper bound on the Rényi divergence of one step, in nats.

    Of Gaussian noise it is exact, order / (2 noise^2). On whole numbers of L2 norm D_2 and L1 norm D_1,
    Skellam noise of variance m has, by Corollary 3.6 of Agarwal et al. (arXiv 2110.04995), at most

        a D_2^2 / (2 m)  +  min( ((2 a - 1) D_2^2 + 6 D_1) / (4 m^2),  3 D_1 / (2 m) )

    for whole orders a. Here D_2 = levels, m = (noise levels)^2, and D_1 <= D_2^2, since no whole number other
    than 0 is below 1.

    Args:
        order: above 1.
        levels: as for `Spending`.

    >>> renyi_divergence(2, 1.0, 0), renyi_divergence(2, 1.0, 3)
    (1.0, 1.25)
    """
    gaussian = order / (2 * noise**2)
    if not levels:
        return gaussian
    return gaussian + min((2 * order + 5) / (4 * noise**4 * levels**2), 3 / (2 * noise**2))


def _of_whole_numbers(spent: Sequence[Spending], delta: float) -> float:
    """By Rényi divergences of whole orders, without a gain from how units are drawn."""
    from dp_accounting import rdp

    steps = [_times(each) for each in spent]
    divergences = [
        sum(n * renyi_divergence(order, e.noise, e.levels) for n, e in zip(steps, spent, strict=True))
        for order in ORDERS
    ]
    with _without_warnings():
        found, _ = rdp.compute_epsilon(ORDERS, divergences, delta)
    return float(found)


def _times(spent: Spending) -> int:
    """How many of the steps a unit may be in."""
    match spent.sampling:
        case Turns(every=every) | Shuffled(steps=every):
            return math.ceil(spent.steps / every)
        case _:
            return spent.steps


def _without_draw(spent: Spending) -> Spending:
    """The same, at least as much, where the privacy of the draw has no Rényi divergences."""
    if isinstance(spent.sampling, Shuffled):
        return replace(spent, sampling=Turns(every=spent.sampling.steps))
    return spent


def _require_delta(delta: float) -> None:
    if not 0.0 < delta < 1.0:  # false for NaN, too
        raise SettingsError(f"delta is {delta}; give a number above 0 and below 1, at most 1 / units")


def _composed(spent: Sequence[Spending], delta: float, interval: float) -> float:
    """By privacy loss distributions."""
    from dp_accounting import pld

    accountant: Any = pld.PLDAccountant(value_discretization_interval=interval)
    with _without_warnings():
        return float(accountant.compose(_events(spent)).get_epsilon(delta))


def _by_renyi(spent: Sequence[Spending], delta: float) -> float:
    """An upper bound, and a close one; without random allocation."""
    from dp_accounting import NeighboringRelation, rdp

    replaced = any(replaces(each.sampling) for each in spent)
    relation = NeighboringRelation.REPLACE_ONE if replaced else NeighboringRelation.ADD_OR_REMOVE_ONE
    accountant: Any = rdp.RdpAccountant(neighboring_relation=relation)
    with _without_warnings():  # orders that do not converge are left out, which is no less an upper bound
        return float(accountant.compose(_events(spent)).get_epsilon(delta))


@contextmanager
def _without_warnings() -> Iterator[None]:
    """Hide what dp-accounting logs at level WARNING.

    Its `absl.logging` calls `logging.basicConfig()` before it asks for the level, if the root logger has no
    handler yet; every line of a run would then be printed by that handler as well.
    """
    absl, silent = logging.getLogger("absl"), logging.NullHandler()
    before = absl.level
    absl.setLevel(logging.ERROR)
    logging.root.addHandler(silent)
    try:
        yield
    finally:
        logging.root.removeHandler(silent)
        absl.setLevel(before)


def _events(spent: Sequence[Spending]) -> Any:
    import dp_accounting

    return dp_accounting.ComposedDpEvent([_event(each) for each in spent])


def _event(spent: Spending) -> Any:
    import dp_accounting as dp

    match spent.sampling:
        case Poisson(chance=chance):
            each = dp.PoissonSampledDpEvent(chance, dp.GaussianDpEvent(spent.noise))
            return dp.SelfComposedDpEvent(each, spent.steps)
        case FixedSize(size=size, of=of):
            # replacing one unit moves the sum twice as far as removing it
            each = dp.SampledWithoutReplacementDpEvent(of, size, dp.GaussianDpEvent(spent.noise / 2))
            return dp.SelfComposedDpEvent(each, spent.steps)
        case Turns(every=every):
            times = math.ceil(spent.steps / every)
            return dp.SelfComposedDpEvent(dp.GaussianDpEvent(spent.noise), times)
        case Shuffled():
            raise AssertionError("random allocation is accounted apart")


def _of_shuffled(spent: Sequence[Spending], delta: float) -> float:
    """Random allocation; whole epochs, since a part of one is no less than the whole."""
    (one, *more) = spent
    if more or not isinstance(one.sampling, Shuffled):
        raise SettingsError(
            "shuffled rounds cannot be added to others in one account; keep one selection for the whole run"
        )
    epochs = math.ceil(one.steps / one.sampling.steps)
    return _of_epochs(one.noise, one.sampling.steps, epochs, delta)


@cache
def _of_epochs(noise: float, steps: int, epochs: int, delta: float) -> float:
    """Epsilon of whole epochs; kept, since it takes seconds and all rounds of an epoch have the same."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ImportWarning)  # that numba would make it faster
        from PLD_accounting import gaussian_allocation_epsilon_range

    draw = Spending(noise=noise, sampling=Poisson(chance=1 / steps), steps=steps * epochs)
    is_small = _composed([draw], delta, 10 * INTERVAL) < SMALL
    try:
        upper, _ = gaussian_allocation_epsilon_range(
            delta=delta,
            sigma=noise,
            num_steps=steps,
            num_selected=1,
            num_epochs=epochs,
            epsilon_accuracy=SMALL / 10 if is_small else -1.0,  # as a difference, or relative and a tenth
        )
    except (RuntimeError, ValueError, OverflowError):  # no range for a very small delta, or little noise
        return math.inf
    return float(upper)
