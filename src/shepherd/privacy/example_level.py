"""Example-level privacy of a run: what the steps of DP-SGD at a client spend, and whether they may.

A unit is one example that a client trains on. A step holds each of a client's n examples with the same
chance, batch_size / n, independently of the others and of other steps; what it adds up is divided by
batch_size, however many came. The number of examples of each client counts as public.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache

from shepherd.core.spending import Poisson, Spending
from shepherd.errors import SettingsError
from shepherd.io.phrases import delta_text
from shepherd.io.progress import many
from shepherd.privacy import accountant
from shepherd.privacy.guarantee import Guarantee
from shepherd.settings import RunSettings, TuningTable

COARSE = 1e-3
"""Discretisation of privacy losses, in nats; an epsilon is never too small, and too large by about 1e-4."""
MAX_ACCOUNTS = 16
"""Most epsilons that are computed to find the largest of several clients'."""


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
    planned: int = 0
    """Visits of each client that are planned, and within the limit."""
    planned_epsilon: float = 0.0
    """The largest epsilon of any client after these."""
    again: int = 0
    """Visits of each client that are counted besides, since as many rounds were released, lost, and made
    again."""

    @property
    def sentence(self) -> str:
        """What is planned, and whose privacy it is, in one sentence."""
        limit = "" if self.limit is None else f"; none makes a visit that would take it above {self.limit:g}"
        return (
            "noise protects each example of a client, added or removed, from anyone who sees what the client"
            f" sends: {many(self.planned, 'visit')} of a client would spend"
            f" {Guarantee(self.planned_epsilon, self.delta).text('example')}, or less{limit}"
        )

    def spent(self, examples: int, steps: int) -> Spending:
        """What this many steps of a client with this many examples spend."""
        sampling = Poisson(chance=chance(examples, self.batch_size))
        return Spending(noise=self.noise, sampling=sampling, steps=steps)

    def epsilon(self, examples: int, steps: int) -> float:
        """The epsilon of these steps; infinity if the accountant can show none."""
        return epsilon_of((self.spent(examples, steps),), self.delta)

    def largest(self, made: Collection[tuple[int, int]]) -> float:
        """The largest epsilon of several clients, each with its examples and the steps that it has made.

        Of many different clients it is an upper bound, since similar ones are counted together.
        """
        return max((self.epsilon(*one) for one in _bounding(set(made))), default=0.0)

    def refusal(self, client: str, examples: int, made: int, more: int) -> str | None:
        """Why a client may not make `more` steps after `made`, in one sentence; None if it may."""
        if self.limit is None or made + more <= self.planned * more:
            return None
        epsilon = self.epsilon(examples, made + more)
        if epsilon <= self.limit:
            return None
        return (
            f"another visit of client {client} would spend {Guarantee(epsilon, self.delta).text('example')}"
            f" in all, above privacy.epsilon = {self.limit:g}; its budget is spent"
        )

    def counting(self, again: int, visits: Collection[tuple[int, int]]) -> ExampleAccount:
        """The account with this many visits of each client besides.

        Args:
            visits: examples of each client, and the steps of one visit of it.
        """
        planned = self.planned - self.again + again
        epsilon = self.largest([(examples, planned * steps) for examples, steps in visits])
        return replace(self, again=again, planned=planned, planned_epsilon=epsilon)

    def require_bounded(self) -> None:
        """Raise SettingsError unless the accountant can show an epsilon for all planned visits."""
        if not math.isfinite(self.planned_epsilon):
            raise SettingsError(
                f"for {many(self.planned, 'visit')} of a client with privacy.examples.noise ="
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
        yield (
            "Population: the number of examples of each client, which is public; delta"
            f" {delta_text(self.delta)} is below 1 over each of these."
        )
        yield (
            "Sampling: each of a client's n examples is in a step with a chance of"
            f" {self.batch_size} / n, at most 1, drawn apart from the others and kept secret."
        )


def _bounding(made: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """Clients, real or not, that spend at least as much as any of these; at most `MAX_ACCOUNTS`.

    Fewer examples, and more steps, never spend less.
    """
    front: list[tuple[int, int]] = []
    for examples, steps in sorted(made, key=lambda one: (one[0], -one[1])):
        if steps and (not front or steps > front[-1][1]):
            front.append((examples, steps))
    size = math.ceil(len(front) / MAX_ACCOUNTS)
    groups = [front[start : start + size] for start in range(0, len(front), size or 1)]
    return [(group[0][0], group[-1][1]) for group in groups]


@lru_cache(maxsize=4096)
def epsilon_of(spent: tuple[Spending, ...], delta: float) -> float:
    """`accountant.epsilon` for numbers that are asked for again and again, a little coarser."""
    return accountant.epsilon(spent, delta, interval=COARSE)


def of_run(settings: RunSettings, sizes: Mapping[str, int], share: float = 1.0) -> ExampleAccount:
    """The account of a run with [privacy.examples], over clients with these numbers of examples.

    Raises:
        SettingsError: as for `planned`; or the planned rounds would spend more than `privacy.epsilon`.
    """
    account = planned(settings, sizes, share)
    if account.limit is not None and not account.planned_epsilon <= account.limit:
        raise SettingsError(
            f"{account.planned} visits of each client would spend"
            f" {Guarantee(account.planned_epsilon, account.delta).text('example')}, above privacy.epsilon ="
            f" {account.limit:g}; raise privacy.examples.noise, or lower federation.rounds, tuning.epochs or"
            " tuning.max_steps"
        )
    return account


def planned(settings: RunSettings, sizes: Mapping[str, int], share: float = 1.0) -> ExampleAccount:
    """The same, whether or not it is within `privacy.epsilon`.

    Args:
        share: share of the clients that a round asks. With `privacy.epsilon`, each client is counted as asked
            in that share of the rounds, and one that is asked more often sits out once its budget is spent.
            Without it none sits out, and chance may ask one in every round, so all rounds are counted.

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
    visits = math.ceil(settings.federation.rounds * counted_share(settings, share))
    account = ExampleAccount(
        noise=settings.privacy.examples.noise,
        batch_size=settings.tuning.batch_size,
        delta=delta_of(settings.privacy.delta, sizes[most], f"client {most}"),
        limit=settings.privacy.epsilon,
        planned=visits,
    )
    spent = account.largest([(size, visits * steps(settings.tuning, size)) for size in sizes.values()])
    return replace(account, planned_epsilon=spent)


def counted_share(settings: RunSettings, share: float) -> float:
    """Share of the rounds that each client is counted as asked in, where a round asks this share of them."""
    return share if settings.privacy.epsilon is not None else 1.0


def noise_for(epsilon: float, account: ExampleAccount, made: Collection[tuple[int, int]]) -> float:
    """The smallest noise multiplier, in four digits, with which several clients spend at most epsilon each.

    Args:
        account: its noise is not used.
        made: each client's examples and steps, as for `ExampleAccount.largest`.

    Raises:
        SettingsError: as for `accountant.noise_for`.
    """
    noise, clients = 0.0, _bounding(set(made))
    for _ in clients:  # who spends most may be another one with other noise
        examples, steps = max(clients, key=lambda one: account.epsilon(*one))
        sampling = Poisson(chance=chance(examples, account.batch_size))
        needed = accountant.noise_for(epsilon, account.delta, sampling, steps, interval=COARSE)
        noise = max(noise, accountant.rounded_up(needed))
        account = replace(account, noise=noise)
        if account.largest(made) <= epsilon:
            break
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
