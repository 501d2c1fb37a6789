"""Span of a layer's inputs that an update of its LoRA factors reveals, and which candidates lie in it.

A layer computes y = W x + s B A x. With its n inputs as the rows of X (n, in) and the slopes of the loss by
its outputs as the rows of G (n, out), the gradients of the factors are

    dA = s (G B)^T X        (r, in)      the rows of dA lie in the span of the inputs
    dB = s G^T (X A^T)      (out, r)     the rows of dB lie in the span of the inputs after A, in r dimensions

so a sum of gradients over any number of steps keeps to the span of what those steps read. While B is 0, dA
is 0 and dB is all that there is. Modules that read the same input (q, k and v of an attention) share a span,
so the rows of their dA add up to one larger matrix; their dB are in spaces of their own. Nothing can be
excluded once there are as many inputs as dimensions: r for each dB, `in` for dA; and a dA with fewer rows
than there are inputs has only some directions of their span, in which no single input lies (Petrov et al.,
DAGER, arXiv 2405.15586, for the check).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
FLOAT32_ROUNDING, BFLOAT16_ROUNDING, FLOAT16_ROUNDING = 2.0**-24, 2.0**-8, 2.0**-11
"""Largest relative error of a number that is rounded to this type."""
MIN_DISTANCE = 1e-4
"""Relative distance that an input computed by another order of sums may have from its own span."""
NOISE_MARGIN = 1.1
"""Singular values must be this many times the largest that noise is expected to have."""
NEVER = 1e9
"""Larger than the log-chance of anything."""
SLACK = 3.0
"""Times the expected error of a direction that a candidate may be off by."""
FALSE_ALARMS = 0.1
"""Candidates that chance alone may be expected to put inside."""
MAX_SHARE = 0.25
"""Largest tolerance, as a share of the typical distance of a vector that is no input."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Span:
    """A subspace that inputs lie in, estimated from a matrix whose rows are in it apart from noise."""

    basis: Array
    """Orthonormal rows, (k, m)."""
    errors: Array
    """Expected error of each direction, as an angle, (k,)."""
    through: Array | None = None
    """What candidates are multiplied by first, (m, in); None for m = in."""
    typical: float = 1.0
    """Distance of a vector that is no input."""

    @property
    def dimensions(self) -> int:
        """Dimensions of the subspace."""
        return len(self.basis)

    def distances(self, candidates: NDArray[Any]) -> tuple[Array, Array]:
        """Distance of each candidate (c, in) from the subspace, relative to its length, and the tolerance."""
        x = np.asarray(candidates, np.float64)
        if self.through is not None:
            x = x @ self.through.T
        x = x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), np.finfo(np.float64).tiny)
        along = x @ self.basis.T  # (c, k)
        distance = np.linalg.norm(x - along @ self.basis, axis=1)
        off = np.linalg.norm(along * self.errors, axis=1)
        return distance, np.minimum(np.hypot(MIN_DISTANCE, SLACK * off), MAX_SHARE * self.typical)

    def against(self, others: NDArray[Any]) -> Span:
        """The span, with the median distance of vectors (n, in) as typical; all but a few are no inputs."""
        return replace(self, typical=float(np.median(self.distances(others)[0])))

    def log_chances(self, distances: Array) -> Array:
        """Logarithm of an upper bound of the chance that a vector that is no input is as near as this.

        As if its direction was random, with the distances scaled so that the typical one is that of a random
        direction: the vectors of a layer share a large part.
        """
        k, m = self.basis.shape
        if k == m or not self.typical:
            return np.zeros(len(distances))
        a, b = (m - k) / 2, k / 2  # the squared distance has a Beta(a, b) distribution
        log_beta = math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b)
        scaled = np.maximum(distances, np.finfo(np.float64).eps) * math.sqrt(1 - k / m) / self.typical
        bounds: Array = np.minimum(0.0, 2 * a * np.log(scaled) - math.log(a / 2) - log_beta)
        return bounds


def span(rows: NDArray[Any], noise: float, through: NDArray[Any] | None = None) -> Span:
    """The subspace of the rows (n, m), as far as it is above noise of this standard deviation an entry."""
    matrix = np.asarray(rows, np.float64)
    _, strengths, directions = np.linalg.svd(matrix, full_matrices=False)
    largest_of_noise = NOISE_MARGIN * noise * (math.sqrt(len(matrix)) + math.sqrt(matrix.shape[1]))
    kept = strengths > max(largest_of_noise, np.finfo(np.float64).eps * strengths.max(initial=0.0))
    errors = noise * math.sqrt(matrix.shape[1]) / strengths[kept]
    factor = None if through is None else np.asarray(through, np.float64)
    typical = math.sqrt(1 - kept.sum() / matrix.shape[1])  # of a random direction
    return Span(basis=directions[kept], errors=errors, through=factor, typical=typical)


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What the update of the factors of modules with one input says of it."""

    by_a: Span
    """From the changes of all their A together."""
    by_b: tuple[Span, ...]
    """From the change of each one's B, after its A."""
    rows: int
    """Most dimensions that `by_a` could have."""

    @property
    def dimensions(self) -> int:
        """Dimensions of the largest span that says anything."""
        return max(each.dimensions for each in (self.by_a, *self.by_b))

    def against(self, others: NDArray[Any]) -> Seen:
        """The same, with the distances of vectors (n, in) as typical; all but a few are no inputs."""
        return replace(
            self,
            by_a=self.by_a.against(others),
            by_b=tuple(each.against(others) for each in self.by_b),
        )

    def inside(self, candidates: NDArray[Any], *, among: int) -> tuple[NDArray[np.bool_], Array]:
        """Which candidates (c, in) look like inputs; and the log-chance of each to do so by chance alone.

        The changes of A and of B are alternatives, since the inputs of some steps are in one of them only.
        The changes of B of several modules must agree, except for one of three or more: the query of an
        example's first token sees one key, so it has no gradient.

        Args:
            among: how many candidates there are in all; what chance alone would put inside is left out.
        """
        count = len(candidates)
        within, log_chance = np.zeros(count, bool), np.zeros(count)
        for spans in ((self.by_a,), self.by_b):
            revealed = [each for each in spans if 0 < each.dimensions < each.basis.shape[1]]
            if not revealed:
                continue
            found = [(*each.distances(candidates), each) for each in revealed]
            fits = np.array([distance <= allowed for distance, allowed, _ in found])  # (spans, c)
            chances = np.array([each.log_chances(distance) for distance, _, each in found])
            agreeing = len(revealed) - (len(revealed) > 2)
            best = np.argsort(chances - np.where(fits, NEVER, 0.0), axis=0)[:agreeing]
            together = np.take_along_axis(chances, best, 0).sum(0)
            few = together < math.log(FALSE_ALARMS / max(1, among))
            within |= np.take_along_axis(fits, best, 0).all(0) & few
            log_chance = np.minimum(log_chance, together)
        return within, log_chance


def seen(
    names: Sequence[tuple[str, str]],
    before: Mapping[str, NDArray[Any]],
    delta: Mapping[str, NDArray[Any]],
    *,
    noise: float = 0.0,
    rounding: float = FLOAT32_ROUNDING,
) -> Seen:
    """What an update says of the input of modules that all read the same one.

    Args:
        names: names of the factors A and B of each module.
        before: the factors that the update is relative to.
        delta: their changes; a factor that is missing was not trained or not shared.
        noise: standard deviation of noise that was added to each entry.
        rounding: largest relative rounding error of an entry.
    """

    def spread(
        name: str,
    ) -> float:  # an update is a difference, so it has the rounding of what was subtracted
        change, start = _size(delta[name]), _size(before[name])
        return math.hypot(noise, rounding * change, FLOAT32_ROUNDING * start)

    changes = [delta[a] for a, _ in names if a in delta]
    width = before[names[0][0]].shape[1]
    together = np.concatenate([np.zeros((0, width)), *changes])
    return Seen(
        by_a=span(together, max((spread(a) for a, _ in names if a in delta), default=0.0)),
        by_b=tuple(span(delta[b], spread(b), before[a][: delta[b].shape[1]]) for a, b in names if b in delta),
        rows=len(together),
    )


def _size(tensor: NDArray[Any]) -> float:
    """Root of the mean square of the entries."""
    return float(np.sqrt(np.mean(np.square(tensor, dtype=np.float64)))) if tensor.size else 0.0
