"""Selection: which clients make up the cohort of a round."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from shepherd.core.messages import ClientInfo
from shepherd.core.randomness import seed_for
from shepherd.core.spending import Poisson, Sampling, Shuffled
from shepherd.errors import FederationError

Cohort = tuple[str, ...]
Draw = Callable[[Sequence[ClientInfo], int, int], Cohort]
"""`(clients, round, seed) -> names of the cohort`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """A rule that draws the cohort of each round.

    `draw(clients, round, seed)` returns names in the order of `clients`, each at most once. `round` counts
    from 0; `seed` is the round's own and the only source of randomness.
    """

    draw: Draw
    share: float = 1.0
    """Share of the clients that a round asks on average, in (0, 1]."""
    by_size: bool = False
    """Whether a client's chance is proportional to its size, so that all updates must have equal weights."""
    may_be_empty: bool = False
    """Whether a round may ask nobody."""
    sampling: Callable[[int], Sampling] | None = None
    """How a cohort of this many clients is drawn, for the accountant; None if no guarantee is known."""
    by_loss: bool = False
    """Whether it reads `asked` and `loss` of the clients: who is asked depends on what they report."""
    by_list: bool = False
    """Whether it goes by the whole list of clients, so that each gets its turn or its due chance: with some
    left out of a round, others would get theirs."""
    together: int = 1
    """Rounds in a row that are drawn with one seed, as an epoch is in which each client has one round."""

    def cohort(self, clients: Sequence[ClientInfo], round: int, seed: int) -> Cohort:
        """Draw the cohort of a round.

        Raises:
            FederationError: there are no clients, or none can be drawn.
        """
        if not clients:
            raise FederationError("there is no client to ask; connect one, or change the split of the data")
        return self.draw(clients, round, seed)

    def visits(self, clients: Sequence[ClientInfo], rounds: int, secret: int) -> Counter[str]:
        """How often each client is asked in so many rounds; of a selection that does not go `by_loss`.

        Args:
            secret: as for `cohort_seed`.
        """
        asked: Counter[str] = Counter()
        for number in range(rounds):
            asked.update(self.cohort(clients, number, cohort_seed(secret, number, self.together)))
        return asked

    def size(self, count: int) -> int:
        """How many of `count` clients a round asks on average, at least one."""
        return share_of(count, self.share)

    def expected(self, count: int) -> float:
        """How many of `count` clients a round asks on average, not rounded where the draw is random."""
        match self.sampling(count) if self.sampling else None:
            case Poisson(chance=chance):
                return chance * count
            case Shuffled(steps=steps):
                return count / steps
            case _:
                return float(self.size(count))

    def require_possible(self, sizes: Mapping[str, int]) -> None:
        """Raise FederationError, before anything is trained, if no cohort of these clients can be drawn.

        Args:
            sizes: client -> how many examples it holds.
        """
        self.cohort([ClientInfo(name=name, examples=count) for name, count in sizes.items()], 0, 0)


def cohort_seed(secret: int, round: int, together: int) -> int:
    """The seed of a round's cohort.

    Args:
        secret: seed of the run, or a number that its server keeps to itself.
        round: counts from 0.
        together: rounds in a row that are drawn with one seed.
    """
    return seed_for(secret, round // together, "cohort")


def share_of(count: int, share: float) -> int:
    """A share of `count`, rounded to a whole number of at least one.

    >>> share_of(100, 0.05), share_of(10, 0.01)
    (5, 1)
    """
    return max(1, round(share * count))


def names_at(clients: Sequence[ClientInfo], indices: Iterable[int]) -> Cohort:
    """The names of the clients at these indices, in the order of `clients`."""
    return tuple(clients[index].name for index in sorted(indices))
