"""How a cohort's updates become one."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from shepherd.core.messages import ServerState, Update


@dataclass(frozen=True, slots=True, kw_only=True)
class Aggregation:
    """A rule that makes one update of a cohort's.

    `combine` must take every update that it is given, and says of which clients the result is.
    """

    combine: Callable[[ServerState, Iterable[Update]], Update]
    streams: bool = True
    """Whether it holds one update at a time, however large the cohort is (law 5)."""
    is_mean: bool = True
    """Whether it is the weighted mean, which noise, secure sums and momentum count on."""
    smallest_cohort: int = 1
    """Usable updates below which it means nothing."""
