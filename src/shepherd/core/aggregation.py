"""Aggregation: how a cohort's updates are combined into one."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from shepherd.core.messages import ServerState, Update


@dataclass(frozen=True, slots=True, kw_only=True)
class Aggregation:
    """A rule that combines a cohort's updates into one.

    `combine` must consume every update that it is given, and names the clients that the result is made of.
    """

    combine: Callable[[ServerState, Iterable[Update]], Update]
    streams: bool = True
    """Whether it holds one update at a time, whatever the size of the cohort (law 5)."""
    is_mean: bool = True
    """Whether the result is the weighted mean, which noise, secure sums and momentum rely on."""
    smallest_cohort: int = 1
    """Fewest usable updates that give a meaningful result."""
