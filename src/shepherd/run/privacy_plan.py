"""What a run will spend of its clients' and their examples' privacy: `shepherd privacy plan`.

Loads neither base nor tokenizer, and reads the data only where the run file does not say how many clients
there are, or examples are protected and nobody says how many a client has.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from shepherd import plugins
from shepherd.consent import NOTHING, Consent
from shepherd.core import Method, Selection
from shepherd.data import pipeline
from shepherd.data.split import SPLIT
from shepherd.errors import SettingsError
from shepherd.io.phrases import delta_text
from shepherd.io.progress import many, range_of
from shepherd.overrides import require_one_stage
from shepherd.privacy import client_level, example_level
from shepherd.privacy.guarantee import Guarantee
from shepherd.settings import RunSettings
from shepherd.training.local import require


@dataclass(frozen=True, slots=True, kw_only=True)
class LevelPlan:
    """What is spent of one kind of privacy, and the noise for another epsilon, if one was asked for."""

    what: str
    """What spends it, with which noise."""
    unit: str
    """Whose privacy it is: that of each "client" or each "example"."""
    epsilon: float
    """Infinity if the accountant can show none."""
    delta: float
    key: str
    """The key of the noise multiplier."""
    budget: float | None
    meaning: tuple[str, ...]
    """Whose privacy it is, and what is assumed: one sentence each."""
    wanted: float | None = None
    noise: float | None = None
    """Noise multiplier with which at most `wanted` is spent."""

    @property
    def fits(self) -> bool:
        """Whether there is an epsilon, within the budget."""
        return self.epsilon <= (self.budget or math.inf) and math.isfinite(self.epsilon)

    def sentences(self) -> Iterator[str]:
        """The plan for a person, one sentence each."""
        if math.isfinite(self.epsilon):
            yield f"{self.what} would spend {Guarantee(self.epsilon, self.delta).text(self.unit)}."
            if self.budget is not None:
                allowed = "within" if self.fits else "above"
                yield f"That is {allowed} the {self.budget:g} that privacy.epsilon allows."
        else:
            yield (
                f"For {self.what} the accountant can show no epsilon at delta {delta_text(self.delta)}, so"
                f" nothing would be protected; raise {self.key}."
            )
        if self.wanted is not None:
            yield f"{self.key} = {self.noise:g} spends at most epsilon {self.wanted:g} at the same delta."
        yield from self.meaning


@dataclass(frozen=True, slots=True, kw_only=True)
class PrivacyPlan:
    """What the planned rounds spend, of the privacy of clients and of examples; None for what is without."""

    clients: LevelPlan | None
    examples: LevelPlan | None

    @property
    def levels(self) -> tuple[LevelPlan, ...]:
        """Those that there are."""
        return tuple(level for level in (self.clients, self.examples) if level is not None)

    @property
    def fits(self) -> bool:
        """Whether all of it is within the budget."""
        return all(level.fits for level in self.levels)

    def sentences(self) -> Iterator[str]:
        """The plan for a person, one sentence each."""
        for level in self.levels:
            yield from level.sentences()


def plan(
    settings: RunSettings,
    *,
    epsilon: float | None = None,
    clients: int | None = None,
    examples: Sequence[int] = (),
    consent: Consent = NOTHING,
) -> PrivacyPlan:
    """Plan the privacy of a run, of its clients and of their examples.

    Args:
        epsilon: the epsilon to find the noise for; by default none is looked for.
        clients: number of clients; by default that of silos.sites or of the split, or else counted in the
            data.
        examples: numbers of examples that clients train on, which noise on examples depends on; by default
            those of the data.

    Raises:
        SettingsError: nothing of the run adds noise, its guarantee would not hold, or it has stages.
        DataError: the data have to be read to count clients or examples, and cannot be.
    """
    require_one_stage(settings, "plan")
    require(settings, consent.plugins)
    method = plugins.method(settings, consent.plugins)
    selection = plugins.selection(settings, consent.plugins)
    if not method.is_private and settings.privacy.examples is None:
        raise SettingsError(
            'nothing of this run adds noise; add [[transforms]] name = "gaussian" with federation.weights ='
            ' "equal" and [selection] name = "poisson" to protect clients, or [privacy.examples] with norm'
            " and noise to protect examples"
        )
    if examples and settings.privacy.examples is None:
        raise SettingsError(
            "--examples is for noise on examples, and this run has none; add [privacy.examples], or leave"
            " --examples out"
        )
    if clients is not None and not method.is_private:
        raise SettingsError(
            "--clients is for noise that hides clients, and this run has none; add a transform with noise, or"
            " leave --clients out"
        )
    if wrong := [size for size in examples if size < 1]:
        raise SettingsError(f"--examples {wrong[0]} is no number of examples of a client; give 2 or more")
    return PrivacyPlan(
        clients=_of_clients(settings, method, selection, epsilon, clients, consent),
        examples=_of_examples(settings, method, selection, epsilon, examples, consent),
    )


def _of_clients(
    settings: RunSettings,
    method: Method,
    selection: Selection,
    wanted: float | None,
    clients: int | None,
    consent: Consent,
) -> LevelPlan | None:
    if not method.is_private:
        return None
    count = client_count(settings, consent) if clients is None else clients
    noise = plugins.noise_of(settings, consent.plugins)
    privacy = client_level.of_run(settings, method, selection, count, noise)
    assert privacy is not None, "the method is private"
    name = plugins.noisy_name(settings, consent.plugins)
    with_noise = "" if noise is None else f" with noise = {noise:g} in the transform {name}"
    return LevelPlan(
        what=f"{many(privacy.rounds, 'round')}{with_noise}",
        unit="client",
        epsilon=privacy.epsilon(privacy.rounds),
        delta=privacy.delta,
        key="noise",
        budget=privacy.budget,
        meaning=tuple(privacy.sentences()),
        wanted=wanted,
        noise=None if wanted is None else privacy.noise_for(wanted),
    )


def client_count(settings: RunSettings, consent: Consent = NOTHING) -> int:
    """How many clients a run has: by its sites or its split, if these have the number, else by its data."""
    if settings.silos.sites:
        return len(settings.silos.sites)
    number = plugins.completed_table(SPLIT, settings.split, consent.plugins).own.get("clients")
    if isinstance(number, int):
        return number
    return len(pipeline.divide(settings, consent.plugins).clients)


def _of_examples(
    settings: RunSettings,
    method: Method,
    selection: Selection,
    wanted: float | None,
    examples: Sequence[int],
    consent: Consent,
) -> LevelPlan | None:
    if settings.privacy.examples is None:
        return None
    sizes = {f"client-{k}": size for k, size in enumerate(examples)} or example_counts(settings, consent)
    # who is asked is drawn among the clients by name, and numbers of examples alone have none
    visits = None if examples else example_level.asked(settings, method, selection, sizes)
    account = example_level.planned(settings, sizes, visits)
    steps = {name: example_level.steps(settings.tuning, size) for name, size in sizes.items()}
    made = [(size, account.planned[name] * steps[name]) for name, size in sizes.items()]
    return LevelPlan(
        what=(
            f"{account.visits} of a client, each of {range_of(steps.values(), 'step')}, with"
            f" privacy.examples.noise = {account.noise:g}"
        ),
        unit="example",
        epsilon=account.planned_epsilon,
        delta=account.delta,
        key="privacy.examples.noise",
        budget=account.limit,
        meaning=(*_counted(sizes, drawn=visits is not None, read=not examples), *account.sentences()),
        wanted=wanted,
        noise=None if wanted is None else example_level.noise_for(wanted, account, made),
    )


def example_counts(settings: RunSettings, consent: Consent = NOTHING) -> dict[str, int]:
    """How many examples each client is given to train on, by the data.

    Raises:
        SettingsError: the sites of the run have the data.
        DataError: they cannot be read.
    """
    if settings.silos.sites:
        raise SettingsError(
            "the sites of this run have the examples, and noise on them depends on how many there are; give"
            " the number of the smallest site, and of the largest, each with --examples"
        )
    shares = pipeline.divide(settings, consent.plugins).clients
    return {name: len(share) for name, share in shares.items()}


def _counted(sizes: Mapping[str, int], *, drawn: bool, read: bool) -> Iterator[str]:
    """What is assumed of the clients: one sentence each."""
    rounds = "each in the rounds that the run will ask it in" if drawn else "each asked in every round"
    yield (
        f"Counted for clients of {range_of(sizes.values(), 'example')}, {rounds}: epsilon is that of the one"
        " that spends most."
    )
    if read:
        yield (
            "A client's examples are those that were read for it: a run leaves out what has nothing to train"
            " on, and fewer examples spend more."
        )
