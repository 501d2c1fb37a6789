"""What a run will spend of each client's privacy, before it starts: `shepherd privacy plan`.

Loads neither base nor tokenizer, and reads the data only where the run file does not say how many clients
there are.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from shepherd import plugins
from shepherd.consent import NOTHING, Consent
from shepherd.data import pipeline
from shepherd.data.split import SPLIT
from shepherd.errors import SettingsError
from shepherd.io.progress import many
from shepherd.overrides import require_one_stage
from shepherd.privacy import client_level
from shepherd.privacy.client_level import ClientPrivacy
from shepherd.settings import RunSettings


@dataclass(frozen=True, slots=True, kw_only=True)
class PrivacyPlan:
    """What the planned rounds spend, and the noise multiplier for another epsilon, if one was asked for."""

    privacy: ClientPrivacy
    name: str
    """What the run file calls the transform that adds the noise."""
    epsilon: float
    wanted: float | None = None
    noise: float | None = None
    """Noise multiplier with which the rounds spend at most `wanted`."""

    def sentences(self) -> Iterator[str]:
        """The plan for a person, one sentence each."""
        of, own = self.privacy, self.privacy.noise
        with_noise = "" if own is None else f" with noise = {own:g} in the transform {self.name}"
        spend = "spends" if of.rounds == 1 else "spend"
        rounds = many(of.rounds, "round")
        yield f"{rounds}{with_noise} {spend} epsilon {self.epsilon:.4g} at delta {of.delta:.3g}."
        if self.wanted is not None:
            yield f"noise = {self.noise:g} spends at most epsilon {self.wanted:g} at the same delta."
        elif of.budget is not None:
            allowed = "within" if self.epsilon <= of.budget else "above"
            yield f"That is {allowed} the {of.budget:g} that privacy.epsilon allows."
        yield from of.sentences()


def plan(
    settings: RunSettings,
    *,
    epsilon: float | None = None,
    clients: int | None = None,
    consent: Consent = NOTHING,
) -> PrivacyPlan:
    """Plan the client-level privacy of a run.

    Args:
        epsilon: the epsilon to find the noise for; by default none is looked for.
        clients: number of clients; by default that of silos.sites or of the split, or else counted in the
            data.

    Raises:
        SettingsError: nothing of the run adds noise, its guarantee would not hold, or it has stages.
        DataError: the data have to be read to count the clients, and cannot be.
    """
    require_one_stage(settings, "plan")
    method = plugins.method(settings, consent.plugins)
    selection = plugins.selection(settings, consent.plugins)
    if not method.is_private:
        raise SettingsError(
            'nothing of this run adds noise; add [[transforms]] name = "gaussian" with federation.weights ='
            ' "equal" and [selection] name = "poisson"'
        )
    count = client_count(settings, consent) if clients is None else clients
    noise = plugins.noise_of(settings, consent.plugins)
    privacy = client_level.of_run(settings, method, selection, count, noise)
    assert privacy is not None, "the method is private"
    return PrivacyPlan(
        privacy=privacy,
        name=plugins.noisy_name(settings, consent.plugins),
        epsilon=privacy.epsilon(privacy.rounds),
        wanted=epsilon,
        noise=None if epsilon is None else privacy.noise_for(epsilon),
    )


def client_count(settings: RunSettings, consent: Consent = NOTHING) -> int:
    """How many clients a run has: by its sites or its split, if these have the number, else by its data."""
    if settings.silos.sites:
        return len(settings.silos.sites)
    number = plugins.completed_table(SPLIT, settings.split, consent.plugins).own.get("clients")
    if isinstance(number, int):
        return number
    return len(pipeline.divide(settings, consent.plugins).clients)
