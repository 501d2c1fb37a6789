"""The rank that each client trains: the same for all, by its name, or dealt out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
    for name in table.ranks:
        if name not in clients:
            close = get_close_matches(name, clients, n=1)
            meant = f"; did you mean {close[0]!r}?" if close else ""
            raise SettingsError(f"adapter.ranks names {name!r}, and there is no such client{meant}")
    return whole | dict(table.ranks)


def require_for_sites(table: AdapterTable, aggregation: Aggregation, sites: Sequence[str]) -> None:
    """Raise SettingsError unless sites, each of which knows its own name alone, can train these ranks."""
    if table.ranks and not isinstance(table.ranks, Mapping):
        raise SettingsError(
            "adapter.ranks deals a list out to the clients by their order, which a site does not know; name"
            " each site, as adapter.ranks = {SITE = RANK}"
        )
    if table.ranks and aggregation.truncates:
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
