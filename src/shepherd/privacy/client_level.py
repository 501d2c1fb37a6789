"""Client-level privacy of a run: what its rounds spend, whether they may, and what the number means.

A run is private at this level if a transform of it is a mechanism (`core.Mechanism`). Everything that would
make its epsilon untrue is refused here or in `plugins`, before anything is trained.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

from shepherd.core import Mechanism, Method, Sampling, Selection, Spending
from shepherd.core.spending import FixedSize, Poisson, Shuffled, Turns
from shepherd.errors import SettingsError
from shepherd.io.phrases import delta_text
from shepherd.io.progress import many
from shepherd.privacy import accountant
from shepherd.privacy.guarantee import Guarantee
from shepherd.settings import PrivacyTable, RunSettings

NEIGHBOURS = {
    "replace one": "the same number of clients, one of them with other examples (replace one)",
    "add or remove one": "the same clients without one of them, or with one more (add or remove)",
    "zero one": (
        "the same clients, one of which changes nothing: it takes part, and adds its share of the noise (zero"
        " one)"
    ),
}
"""What neighbouring data differ in, by what the ledger calls it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientPrivacy:
    """What the rounds of one run spend, for each client with all of its examples."""

    mechanism: Mechanism
    sampling: Sampling
    clients: int
    rounds: int
    """Rounds that are planned."""
    delta: float
    budget: float | None = None
    """Largest epsilon that the rounds may spend together; None if no limit is set."""
    noise: float | None = None
    """Noise multiplier in the run file, if it is there."""
    secure: bool = False
    """Whether the one who runs the rounds gets sums alone."""
    again: int = 0
    """Rounds that are counted besides, since as many were released, lost, and made again; see `redone`."""

    def spent(self, rounds: int) -> Spending:
        """What this many rounds spend, with those that are counted besides."""
        return self.mechanism.spent(self.sampling, rounds + self.again)

    def redone(self, finished: int, released: int) -> int:
        """Rounds to count besides if a run goes on after `finished` rounds, of which `released` are known.

        The rounds in between are made again with other noise, and with a new draw of who takes part: a second
        sum over the same clients would say more than a sum over others. Of an epoch in which each client has
        one round, both what was known of it and what is made again count as an epoch; who takes turns may
        have been in one of the lost rounds more, and noise that is correlated reaches into them from before.

        Examples, with `finished` = 4 and `released` = 7, so that rounds 5, 6 and 7 are made again:

        - `Poisson`, `FixedSize`: 3, one for each round.
        - `Shuffled(steps=5)`: 5 (2 - 0) = 10. Rounds 1 to 7 are of two epochs, neither of which had ended
          with round 4, so both are drawn again, and a client may be in one more round of each.
        - `Turns(every=2)`: 2 ceil((3 + 1) / 2) = 4. A client is in two of the three rounds at most, 5 and 7,
          and 4 rounds count as two visits.
        """
        lost = max(0, released - finished)
        match self.counted:
            case Shuffled(steps=steps) if lost:
                return steps * (math.ceil(released / steps) - finished // steps)
            case Turns(every=every) if lost:
                return every * math.ceil((lost + every - 1) / every)
            case _:
                return lost

    def epsilon(self, rounds: int) -> float:
        """Epsilon at `delta` after this many rounds; infinity if the accountant can show none."""
        return _epsilon(self.spent(rounds), self.delta)

    def noise_for(self, epsilon: float) -> float:
        """The noise multiplier, as the run file has it, with which all rounds spend at most this epsilon."""
        one = self.spent(self.rounds)
        needed = accountant.noise_for(epsilon, self.delta, one.sampling, one.steps, one.levels)
        return accountant.rounded_up(needed * (1.0 if self.noise is None else self.noise / one.noise))

    def require_within(self) -> float:
        """Epsilon of all planned rounds.

        Raises:
            SettingsError: it is above the budget; the message has the noise that would do.
        """
        spent = self.epsilon(self.rounds)
        if self.budget is not None and not spent <= self.budget:
            raise SettingsError(
                f"{many(self.rounds, 'round')} would spend {Guarantee(spent, self.delta).text('client')}, and"
                f" privacy.epsilon allows {self.budget:g}; set noise = {self.noise_for(self.budget):.4g} in"
                " the transform that adds it, plan fewer rounds, or allow more"
            )
        return spent

    def require_bounded(self) -> None:
        """Raise SettingsError unless the accountant can show an epsilon for all planned rounds."""
        if not math.isfinite(self.epsilon(self.rounds)):
            raise SettingsError(
                f"for {many(self.rounds, 'round')} with so little noise the accountant can show no epsilon at"
                f" delta {delta_text(self.delta)}, so nothing would be protected; raise noise in the"
                " transform that adds it, such as to 1.0, or privacy.delta"
            )

    def row(self, rounds: int) -> dict[str, Any]:
        """What is reported after this many rounds."""
        more = {"again": self.again} if self.again else {}
        return {"epsilon": self.epsilon(rounds), "delta": self.delta, **more}

    def sentences(self) -> Iterator[str]:
        """What epsilon means here: one sentence each."""
        yield (
            "Whose privacy: each client's, with all of the examples that it trains on. Examples that are held"
            " out for scoring are not covered."
        )
        yield f"Neighbouring data: {NEIGHBOURS[self.relation]}."
        yield self._trusted()
        yield (
            f"Population: {self.clients:,} clients, which is public; delta {delta_text(self.delta)} is below"
            f" 1 / {self.clients:,}."
        )
        yield from accountant.of_large_delta(self.delta, self.clients, "clients")
        yield f"Sampling: {described(self.counted)}"

    @property
    def counted(self) -> Sampling:
        """How cohorts are drawn, as far as the account relies on it."""
        return self.spent(self.rounds).sampling

    @property
    def relation(self) -> str:
        """What two neighbouring sets of data differ in: a key of `NEIGHBOURS`."""
        if self.mechanism.honest:
            return "zero one"
        return "replace one" if accountant.replaces(self.sampling) else "add or remove one"

    def _trusted(self) -> str:
        honest = self.mechanism.honest
        if not honest:
            return (
                "Who is trusted: the one who runs the rounds, who sees the updates and adds the noise."
                " Protected against: everybody who gets the adapters, scores and logs of the run."
            )
        if not self.secure:
            return (
                "Who is trusted: the one who runs the rounds, who sees each update with the noise of its"
                f" client alone, which has 1 / {honest} of the variance; [secure] would show sums alone."
                " Protected against: everybody who gets the adapters, scores and logs of the run."
            )
        return (
            f"Who is trusted: of the clients in a sum, {honest} that add their shares of the noise and tell"
            " nobody what they added. Protected against: the one who runs the rounds and all other clients,"
            " together, as far as secure aggregation shows them sums alone; and everybody who gets the"
            " adapters, scores and logs of the run."
        )


@cache
def _epsilon(spent: Spending, delta: float) -> float:
    return accountant.epsilon([spent], delta)


def described(sampling: Sampling) -> str:
    """How cohorts are drawn, as one sentence, with whom it hides."""
    match sampling:
        case Poisson(chance=chance):
            return (
                f"each client is in a round with a chance of {chance:.3g}, drawn apart from the others and"
                " kept secret."
            )
        case FixedSize(size=size, of=of):
            return f"each round draws {size} of {of} clients, which is kept secret."
        case Turns(every=every):
            if every == 1:
                return "none: any client may be in every round, so nothing is gained by the draw."
            return f"none: a client is in one of {every} rounds in a row, and everybody may know in which."
        case Shuffled(steps=steps):
            return f"each client is in one of {steps} rounds in a row, drawn for each client and kept secret."


def of_run(
    settings: RunSettings, method: Method, selection: Selection, clients: int, noise: float | None = None
) -> ClientPrivacy | None:
    """The client-level privacy of a run over this many clients; None if no transform adds noise.

    Args:
        noise: noise multiplier in the run file, for messages.

    Raises:
        SettingsError: there is no guarantee for this selection; delta is not below 1 / clients; or the
            accountant's packages are missing.
    """
    mechanism = method.transform.mechanism
    if mechanism is None:
        return None
    accountant.require()
    if selection.sampling is None:
        raise SettingsError(
            f"the selection {settings.selection.name!r} draws clients by chances for which no guarantee is"
            f' known; set [selection] name = "{"uniform" if mechanism.honest else "poisson"}"'
        )
    delta = delta_of(settings.privacy.delta, clients)
    sampling = selection.sampling(clients)
    mechanism.spent(sampling, settings.federation.rounds)
    return ClientPrivacy(
        mechanism=mechanism,
        sampling=sampling,
        clients=clients,
        rounds=settings.federation.rounds,
        delta=delta,
        budget=settings.privacy.epsilon,
        noise=noise,
        secure=settings.secure is not None,
    )


def hides_data(settings: RunSettings, method: Method) -> bool:
    """Whether noise is to hide what clients hold, whole or by example, so that nothing exact of it is shown.

    Where it hides single examples, how many a client has is public, and so is who takes part.
    """
    return method.is_private or settings.privacy.examples is not None


def require_noise(settings: RunSettings) -> None:
    """Raise SettingsError if a budget is set and nothing adds noise: the run would keep no promise."""
    if settings.privacy.examples is None and settings.privacy != PrivacyTable():
        raise SettingsError(
            "privacy.epsilon and privacy.delta are for a run that adds noise, and nothing of this one does;"
            ' add [[transforms]] name = "gaussian", or remove [privacy]'
        )


def delta_of(delta: float | None, clients: int) -> float:
    """The delta of a run: as asked, or the default for this many clients.

    Raises:
        SettingsError: it is not below 1 / clients: to publish everything of one client would be allowed.
    """
    if clients < 2:
        there = "is 1" if clients == 1 else f"are {clients}"
        raise SettingsError(f"noise hides one of several clients, and there {there}; add some")
    if delta is None:
        return accountant.default_delta(clients)
    if not 0.0 < delta < 1 / clients:  # false for NaN, too
        raise SettingsError(
            f"privacy.delta = {delta:g} is not below 1 / {clients}, for {clients} clients, and would allow to"
            f" publish one of them whole; set it to {accountant.default_delta(clients):.2g} or less"
        )
    return delta
