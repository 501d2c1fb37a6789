"""The rank that each client trains: the same for all, by its name, or dealt out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from itertools import cycle

from shepherd.core import Aggregation
from shepherd.errors import SettingsError
from shepherd.settings import AdapterTable


def ranks_of(table: AdapterTable, aggregation: Aggregation, clients: Sequence[str]) -> dict[str, int]:
    """Client -> how many ranks it trains; without those that train all ranks of the adapter.

    Args:
        clients: names of all clients of the run.

    Raises:
        SettingsError: `adapter.ranks` names a client that does not exist.
    """
    whole = dict.fromkeys(sorted(clients), table.rank) if aggregation.side_rank else {}
    if not isinstance(table.ranks, Mapping):
        return whole | dict(zip(sorted(clients), cycle(table.ranks), strict=False))
    known = set(clients)
    for name in table.ranks:
        if name not in known:
            close = get_close_matches(name, clients, n=1)
            meant = f"; did you mean {close[0]!r}?" if close else ""
            raise SettingsError(f"adapter.ranks names {name!r}, and there is no such client{meant}")
    return whole | dict(table.ranks)


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteRanks:
    """The ranks that the sites of a run train."""

    asked: Mapping[str, int] = field(default_factory=dict)
    """Site -> how many ranks the run file asks of it; all of the adapter's, if it is not there."""
    whole: int | None = None
    """Ranks of the adapter that are trained; None if it is not known."""
    least: int | None = None
    """Fewest ranks that a site may train; None where each trains what is asked."""

    def fault(self, site: str, says: int | None) -> str:
        """Why a site may not train the rank that it says it would; "" if it may. None: what is asked."""
        due = self.asked.get(site, self.whole)
        if says is None or due is None or (self.least or due) <= says <= due:
            return ""
        if self.least:
            return f"it would train rank {says}, and adapter.min_rank = {self.least} of rank {due} is asked"
        return f"it would train rank {says}, and rank {due} is asked"

    def of(self, site: str, says: int | None) -> int | None:
        """How many ranks a site trains, the first ones; None for all of the adapter."""
        due = self.asked.get(site)
        return due if says is None or says == (due or self.whole) else says


def site_ranks(table: AdapterTable, aggregation: Aggregation, sites: Sequence[str]) -> SiteRanks:
    """The ranks that a run file asks of its sites; as for `ranks_of`."""
    return SiteRanks(asked=ranks_of(table, aggregation, sites), whole=table.rank, least=table.min_rank)


def rank_at_site(table: AdapterTable, site: str, most: int) -> int:
    """How many ranks a site trains whose owner allows this many at most: all of what is asked, or fewer where
    the run file lets a site decide.

    >>> table = AdapterTable(rank=16, min_rank=4)
    >>> [rank_at_site(table, "clinic", most) for most in (8, 32)]
    [8, 16]
    """
    asked = table.ranks.get(site, table.rank) if isinstance(table.ranks, Mapping) else table.rank
    return min(asked, most) if table.min_rank else asked


def require_for_sites(table: AdapterTable, aggregation: Aggregation, sites: Sequence[str]) -> None:
    """Raise SettingsError unless sites, each of which knows its own name alone, can train these ranks."""
    if table.ranks and not isinstance(table.ranks, Mapping):
        raise SettingsError(
            "adapter.ranks deals a list out to the clients by their order, which a site does not know; name"
            " each site, as adapter.ranks = {SITE = RANK}"
        )
    if (table.ranks or table.min_rank) and aggregation.truncates:
        raise SettingsError(
            "the aggregation sends clients of a smaller rank their own ranks alone, which a site does not"
            ' know; set [aggregation] name = "product" with truncated = false'
        )
    if aggregation.side_rank:
        raise SettingsError(
            f"the aggregation keeps {aggregation.side_rank} ranks beside the trained ones, and a site accepts"
            ' an adapter of adapter.rank alone; set [aggregation] name = "product"'
        )
    ranks_of(table, aggregation, sites)
