"""Draws of the bootstrap, shared by all arms: the resampled questions, and the shifts of the seeds.

Of n questions n - 1 are drawn (Rao and Wu, 1988), which makes the variance of a mean unbiased; drawing n
makes it too small by 1/n, which matters in small categories. Categories with one question are resampled
together (collapsed strata), since one question alone shows no spread.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from shepherd.errors import StatisticsError
from shepherd.evaluate import seeds as of_seeds

Floats = NDArray[np.float64]
_CHUNK_CELLS = 1 << 20


@dataclass(frozen=True, slots=True, eq=False)
class Group:
    """Questions that are resampled together.

    places: (n,) their indices; counts: (R, n) how often each is drawn; share: their share of the statistic;
    single: whether every question is a category of its own, so that its weight does not matter.
    """

    places: NDArray[np.intp]
    counts: NDArray[np.uint8]
    share: float
    single: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class Draws:
    """Draws that every arm is scored on: the strata (Q,), their groups, and the seeds' contrasts (R, S).

    Takes resamples x questions bytes of memory.
    """

    strata: tuple[str, ...]
    groups: tuple[Group, ...]
    contrasts: Floats

    def only(self, category: str) -> Draws:
        """Restrict the draws to one category; values and weights are still given for all questions."""
        for group in self.groups:
            names = [self.strata[place] for place in group.places]
            if category in names:
                return Draws(self.strata, (_part(group, names.index(category)),), self.contrasts)
        raise StatisticsError(
            f"No question has the category {category!r}; name one of the questions' categories."
        )

    @property
    def one_seed(self) -> Draws:
        """The same draws of the questions, for values of one seed, which has no luck of training."""
        return replace(self, contrasts=np.zeros((len(self.contrasts), 1)))

    @property
    def questions(self) -> int:
        """Number of questions that are scored: all, or those of one category."""
        return sum(len(group.places) for group in self.groups)

    @property
    def seeds(self) -> int:
        """Number of training seeds."""
        return int(self.contrasts.shape[1])


def _part(group: Group, at: int) -> Group:
    """The whole group; if every question is a category of its own, only that at index `at`."""
    if not group.single:
        return Group(group.places, group.counts, 1.0)
    return Group(group.places[at : at + 1], np.ones((len(group.counts), 1), np.uint8), 1.0, single=True)


def draws(strata: Sequence[str], *, seeds: int = 1, resamples: int = 10_000, seed: int = 0) -> Draws:
    """Draw the resamples with which all arms are scored.

    Args:
        strata: each question's category, (Q,).
        seeds: number of training seeds of the values.
        resamples: number of resamples.
        seed: seed of the draws.

    Raises:
        StatisticsError: there are no questions, or no seed.
    """
    if not len(strata) or seeds < 1 or resamples < 1:
        raise StatisticsError("There are no scores for a statistic; ask at least one question.")
    names = np.array([str(name) for name in strata])
    rng = np.random.default_rng([seed, resamples])
    return Draws(
        strata=tuple(names.tolist()),
        groups=tuple(
            Group(places, _counts(len(places), resamples, rng), share, single)
            for places, share, single in _strata_of(names)
        ),
        contrasts=of_seeds.contrasts(resamples, seeds, rng),
    )


def _strata_of(names: NDArray[np.str_]) -> Iterator[tuple[NDArray[np.intp], float, bool]]:
    """Places, share and `single` of each group: one per category, and one of all one-question categories."""
    found, inverse, sizes = np.unique(names, return_inverse=True, return_counts=True)
    for index in np.flatnonzero(sizes > 1):
        yield np.flatnonzero(inverse == index), 1 / len(found), False
    alone = np.flatnonzero(sizes[inverse] == 1)
    if len(alone):
        yield alone, len(alone) / len(found), True


def _counts(n: int, resamples: int, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Counts (resamples, n) of n - 1 questions drawn from n with replacement; of one question itself."""
    drawn = max(n - 1, 1)
    counts = np.empty((resamples, n), np.uint8)
    for rows in chunks(resamples, n):
        size = rows.stop - rows.start
        picks = rng.integers(n, size=(size, drawn)) + n * np.arange(size)[:, None]
        counts[rows] = np.bincount(picks.ravel(), minlength=size * n).reshape(size, n)
    return counts


def chunks(resamples: int, n: int) -> Iterator[slice]:
    """Split the rows of (resamples, n) into slices of about a million cells, to bound memory."""
    step = max(1, _CHUNK_CELLS // n)
    return (slice(start, min(start + step, resamples)) for start in range(0, resamples, step))
