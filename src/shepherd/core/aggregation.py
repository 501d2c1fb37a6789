"""Aggregation: how a cohort's updates are combined into one."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from shepherd.core.messages import Context, ServerState, Update


@dataclass(frozen=True, slots=True, kw_only=True)
class Aggregation:
    """A rule that combines a cohort's updates into one.

    `combine` must consume every update that it is given, and names the clients that the result is made of.
    """

    combine: Callable[[ServerState, Iterable[Update], Context], Update]
    streams: bool = True
    """Whether it holds one update at a time, whatever the size of the cohort (law 5)."""
    is_mean: bool = False
    """Whether the result is the weighted mean, which noise, secure sums and momentum rely on. With a rule
    that does not say so, they are refused."""
    smallest_cohort: int = 1
    """Fewest usable updates that give a meaningful result."""
    keeps_basis: bool = True
    """Whether rank j of the result continues rank j of the broadcast. A rule that factorises a product again
    does not: a momentum of an earlier round would then be added to other directions."""
    robust: bool = False
    """Whether it stands some clients that lie. It then needs the update of each client by itself: no secure
    sum, no mean of several clients, and no cohort that is drawn by what clients report of themselves."""
    chooses: bool = False
    """Whether the result may be made of some of the updates alone; its `clients` are then these."""
    needs_root: bool = False
    """Whether it compares updates with the one that the server's own examples give: `Context.root`."""
    takes_ranks: bool = False
    """Whether the updates of a round may have different ranks."""
    truncates: bool = False
    """Whether a client of a smaller rank is sent its own ranks alone, without the others as frozen ones."""
    side_rank: int = 0
    """Ranks that the adapter has in addition to the trained ones: what does not fit into these is kept there,
    frozen. The trained ranks come first."""
    needs_model: bool = False
    """Whether it reads the products B A of the server's adapter, which must then be a model by itself; a rule
    that does not keep the basis does so in any case."""
    restarts: bool = False
    """Whether the trained ranks start again in each round, with B = 0: A alone would then learn nothing."""
