"""Example-level privacy of a run: what the steps of DP-SGD at a client spend, and whether they may.

A unit is one example that a client trains on. A step holds each of a client's n examples with the same
chance, batch_size / n, independently of the others and of other steps; what it adds up is divided by
batch_size, however many came. The number of examples of each client counts as public.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache

from shepherd.core import ClientInfo, Method, Selection
from shepherd.core.spending import Poisson, Spending
from shepherd.errors import SettingsError
from shepherd.io.phrases import delta_text
from shepherd.io.progress import range_of
from shepherd.privacy import accountant
from shepherd.privacy.guarantee import Guarantee
from shepherd.settings import RunSettings, TuningTable

COARSE = 1e-3
"""Discretisation of privacy losses, in nats; an epsilon is never too small, and too large by about 1e-4."""


def chance(examples: int, batch_size: int) -> float:
    """The chance of each of a client's examples to be in a step.

    >>> chance(1000, 16), chance(10, 16)
    (0.016, 1.0)
    """
    return min(1.0, batch_size / examples)


def expected_batch(examples: int, batch_size: int) -> int:
    """Expected number of examples in a step: what its clipped sum is divided by."""
    return min(batch_size, examples)


def steps(tuning: TuningTable, examples: int) -> int:
    """Steps of one visit: those that are asked for, or as many as give this many epochs on average."""
    if tuning.max_steps is not None:
        return tuning.max_steps
    passes = tuning.epochs or 1.0
    return max(1, round(passes * examples / expected_batch(examples, tuning.batch_size)))


@dataclass(frozen=True, slots=True, kw_only=True)
class ExampleAccount:
    """Adds up what each client's steps spend of the privacy of its examples."""

    noise: float
    """Noise multiplier of a step."""
    batch_size: int
    delta: float
    """Delta at which epsilon is counted, below 1 over any client's number of examples."""
    limit: float | None = None
    """Largest epsilon that a client may spend; None for no limit."""
    planned: Mapping[str, int] = field(default_factory=dict)
    """Client -> its visits that are planned, and within the limit."""
    sizes: Collection[int] = ()
    """Numbers of examples of the clients; none where each site alone knows its own."""
    planned_epsilon: float = 0.0
    """The largest epsilon of any client after these."""
    again: int = 0
    """Visits of each client that are counted besides, since as many rounds were released, lost, and made
    again."""

    @property
    def sentence(self) -> str:
        """What is planned, and whose privacy it is, in one sentence."""
        limit = "" if self.limit is None else f", and privacy.epsilon allows {self.limit:g}"
        return (
            "noise protects each example of a client, added or removed, from anyone who sees what the client"
            f" sends: {self.visits} of a client would spend"
            f" {Guarantee(self.planned_epsilon, self.delta).text('example')}, or less{limit}"
        )

    @property
    def visits(self) -> str:
        """How many visits of a client are counted, those besides included, in words."""
        return range_of([each + self.again for each in self.planned.values()], "visit")

    def spent(self, examples: int, steps: int) -> Spending:
        """What this many steps of a client with this many examples spend."""
        sampling = Poisson(chance=chance(examples, self.batch_size))
        return Spending(noise=self.noise, sampling=sampling, steps=steps)

    def epsilon(self, examples: int, steps: int) -> float:
        """The epsilon of these steps; infinity if the accountant can show none."""
        return epsilon_of((self.spent(examples, steps),), self.delta)

    def largest(self, made: Collection[tuple[int, int]]) -> float:
        """The largest epsilon of several clients, each with its examples and the steps that it has made."""
        return max((self.epsilon(*one) for one in most_exposed(made, self.epsilon)), default=0.0)

    def refusal(self, client: str, examples: int, made: int, more: int) -> str | None:
        """Why a client may not make `more` steps after `made`, in one sentence; None if it may."""
        if self.limit is None or made + more <= (self.planned.get(client, 0) + self.again) * more:
            return None
        epsilon = self.epsilon(examples, made + more)
        if epsilon <= self.limit:
            return None
        return (
            f"another visit of client {client} would spend {Guarantee(epsilon, self.delta).text('example')}"
            f" in all, above privacy.epsilon = {self.limit:g}; its budget is spent, so export the last round,"
            " or start a run with more noise"
        )

    def counting(self, again: int, visits: Mapping[str, tuple[int, int]]) -> ExampleAccount:
        """The account with this many visits of each client besides.

        Args:
            visits: client -> its examples, and the steps of one visit of it.
        """
        made = [(n, (self.planned[client] + again) * steps) for client, (n, steps) in visits.items()]
        return replace(self, again=again, planned_epsilon=self.largest(made))

    def require_bounded(self) -> None:
        """Raise SettingsError unless the accountant can show an epsilon for all planned visits."""
        if not math.isfinite(self.planned_epsilon):
            raise SettingsError(
                f"for {self.visits} of a client with privacy.examples.noise ="
                f" {self.noise:g} the accountant can show no epsilon at delta {delta_text(self.delta)}, so no"
                " example would be protected; raise privacy.examples.noise, such as to 1.0, or privacy.delta"
            )

    def row(self, made: Collection[tuple[int, int]]) -> dict[str, float]:
        """What is reported after a round: the largest epsilon of any client, and its delta."""
        more = {"again": self.again} if self.again else {}
        return {"epsilon": self.largest(made), "delta": self.delta, **more}

    def sentences(self) -> Iterator[str]:
        """What epsilon means here: one sentence each."""
        yield (
            "Whose privacy: each example's that a client trains on. A person with several examples is not"
            " protected as one, and examples that are held out for scoring are not covered."
        )
        yield "Neighbouring data: a client's examples without one of them, or with one more (add or remove)."
        yield (
            "Who is trusted: the client itself, which clips and adds the noise before anything leaves it."
            " Protected against: everybody who sees what a client sends, so also the one who runs the rounds."
        )
        below = f"1 / {max(self.sizes):,}, of the client that has most" if self.sizes else "1 over each"
        yield (
            "Population: the number of examples of each client, which is public; delta"
            f" {delta_text(self.delta)} is below {below}."
        )
        yield from accountant.of_large_delta(self.delta, sum(self.sizes), "examples of all clients")
        yield (
            "Sampling: each of a client's n examples is in a step with a chance of"
            f" {self.batch_size} / n, at most 1, drawn apart from the others and kept secret."
        )


def most_exposed(
    made: Iterable[tuple[int, int]], epsilon: Callable[[int, int], float]
) -> Iterator[tuple[int, int]]:
    """A few of several clients, each with its examples and steps: one of them has the largest epsilon.

    Fewer examples, and more steps, never spend less: so a client with the fewest examples of a group and the
    most steps of it, real or not, bounds the whole group. Nothing of a group is yielded whose bound is below
    what is known of another client.

    Args:
        epsilon: `(examples, steps) -> epsilon`.
    """
    front: list[tuple[int, int]] = []  # those that no other has fewer examples and more steps than
    for examples, steps in sorted(set(made), key=lambda one: (one[0], -one[1])):
        if steps and (not front or steps > front[-1][1]):
            front.append((examples, steps))
    if not front:
        return
    # about as epsilon grows with a chance of batch_size / examples
    guess = max(front, key=lambda one: one[1] / one[0] ** 2)
    yield guess
    known, first = epsilon(*guess), 0
    while first < len(front):
        examples, last = front[first][0], first
        while last + 1 < len(front) and front[last + 1][1] / examples**2 <= guess[1] / guess[0] ** 2:
            last += 1
        while last > first and epsilon(examples, front[last][1]) > known:
            last = (first + last) // 2
        if last == first and front[first] != guess:
            yield front[first]
            known = max(known, epsilon(*front[first]))
        first = last + 1


@lru_cache(maxsize=4096)
def epsilon_of(spent: tuple[Spending, ...], delta: float) -> float:
    """`accountant.epsilon` for numbers that are asked for again and again, a little coarser."""
    return accountant.epsilon(spent, delta, interval=COARSE)


def of_run(
    settings: RunSettings, sizes: Mapping[str, int], visits: Mapping[str, int] | None = None
) -> ExampleAccount:
    """The account of a run with [privacy.examples], over clients with these numbers of examples.

    Args:
        visits: as for `planned`.

    Raises:
        SettingsError: as for `planned`; or the planned visits would spend more than `privacy.epsilon`.
    """
    account = planned(settings, sizes, visits)
    if account.limit is not None and not account.planned_epsilon <= account.limit:
        raise SettingsError(
            f"{account.visits} of each client would spend"
            f" {Guarantee(account.planned_epsilon, account.delta).text('example')}, above privacy.epsilon ="
            f" {account.limit:g}; raise privacy.examples.noise, or lower federation.rounds, tuning.epochs or"
            " tuning.max_steps"
        )
    return account


def planned(
    settings: RunSettings, sizes: Mapping[str, int], visits: Mapping[str, int] | None = None
) -> ExampleAccount:
    """The same, whether or not it is within `privacy.epsilon`.

    Args:
        visits: client -> the rounds that ask it; by default it may be all, as over sites.

    Raises:
        SettingsError: delta is not below 1 over the examples of each client; a client has one example; or the
            accountant's packages are missing.
    """
    assert settings.privacy.examples is not None
    accountant.require()
    few = min(sizes, key=lambda name: sizes[name])
    if sizes[few] < 2:
        raise SettingsError(
            f"client {few} has {sizes[few]} example to train on, which nothing can hide; remove it, or set"
            " another split"
        )
    most = max(sizes, key=lambda name: sizes[name])
    account = ExampleAccount(
        noise=settings.privacy.examples.noise,
        batch_size=settings.tuning.batch_size,
        delta=delta_of(settings.privacy.delta, sizes[most], f"client {most}"),
        limit=settings.privacy.epsilon,
        planned=dict.fromkeys(sizes, settings.federation.rounds) if visits is None else visits,
        sizes=tuple(sizes.values()),
    )
    return account.counting(0, {name: (size, steps(settings.tuning, size)) for name, size in sizes.items()})


def asked(
    settings: RunSettings, method: Method, selection: Selection, sizes: Mapping[str, int]
) -> dict[str, int] | None:
    """How many of a run's rounds ask each client, by the cohorts that it will draw; None if it may be all.

    Nobody knows it before the run where a draw goes by what clients report, where clients that are late are
    left out of it, or where noise hides who is asked, so that the draws are secret.

    Args:
        sizes: number of examples of each client.
    """
    carries_late = method.stragglers is not None and method.stragglers.carry
    if method.is_private or selection.by_loss or carries_late:
        return None
    clients = [ClientInfo(name=name, examples=sizes[name]) for name in sorted(sizes)]
    drawn = selection.visits(clients, settings.federation.rounds, settings.seed)
    return {name: drawn[name] for name in sizes}


def noise_for(epsilon: float, account: ExampleAccount, made: Collection[tuple[int, int]]) -> float:
    """The smallest noise multiplier, in four digits, with which several clients spend at most epsilon each.

    Args:
        account: its noise is where the search begins.
        made: each client's examples and steps, as for `ExampleAccount.largest`.

    Raises:
        SettingsError: as for `accountant.noise_for`.
    """
    if not any(steps for _, steps in made):  # nobody is asked
        return accountant.MIN_NOISE
    noise = 0.0
    while not noise or account.largest(made) > epsilon:  # who spends most may be another one with other noise
        examples, steps = max(most_exposed(made, account.epsilon), key=lambda one: account.epsilon(*one))
        sampling = Poisson(chance=chance(examples, account.batch_size))
        needed = accountant.noise_for(epsilon, account.delta, sampling, steps, interval=COARSE)
        noise = accountant.rounded_up(max(needed, noise * (1 + accountant.NOISE_TOLERANCE)))
        account = replace(account, noise=noise)
    return noise


def delta_of(delta: float | None, examples: int, whose: str) -> float:
    """The delta that is asked for, or the default for this many examples.

    Raises:
        SettingsError: it is not in (0, 1 / examples): one could publish an example whole by it.
    """
    if delta is None:
        return accountant.default_delta(examples)
    if not 0.0 < delta < 1.0 / examples:  # false for NaN, too
        raise SettingsError(
            f"delta is {delta:.3g}, and {whose} has {examples} examples; set it above 0 and below 1 /"
            f" {examples}, such as {accountant.default_delta(examples):.1g}"
        )
    return delta
