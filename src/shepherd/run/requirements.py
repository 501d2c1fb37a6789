"""What the parts and the data of a run must have of each other; asked before anything is written."""

from __future__ import annotations

from shepherd.core import (
    Aggregation,
    Method,
    Selection,
)
from shepherd.data.dataset import TokenisedData
from shepherd.errors import SettingsError
from shepherd.io.progress import many
from shepherd.machine import memory
from shepherd.model import base as bases
from shepherd.rounds.ranks import ranks_of
from shepherd.rounds.ring import require_balanced, require_sums
from shepherd.rounds.waiting import require_enough
from shepherd.settings import RunSettings


def require_possible(
    settings: RunSettings, method: Method, selection: Selection, prepared: TokenisedData
) -> None:
    """Raise SettingsError unless the method can train on these clients and their data.

    Privacy has accounts of its own, see `run.accounts`.
    """
    _require_contribution(settings, method, prepared)
    _require_root(settings, method, prepared)
    sizes = prepared.sizes
    ranks_of(settings.adapter, method.aggregation, list(sizes))
    selection.require_possible(sizes)
    require_cohort(settings, method.aggregation, selection, len(sizes))
    require_sums(settings, method, selection, len(sizes))
    require_balanced(settings, method, sizes, selection.size(len(sizes)))
    require_enough(settings, method, selection, len(sizes))


def require_cohort(
    settings: RunSettings, aggregation: Aggregation, selection: Selection, clients: int
) -> None:
    """Raise SettingsError if a round asks fewer clients than the aggregation needs."""
    asked, needed = selection.size(clients), aggregation.smallest_cohort
    if asked < needed:
        raise SettingsError(
            f"a round asks {asked} of {many(clients, 'client')}, and aggregation.name ="
            f' "{settings.aggregation.name}" as it is set requires {needed} usable updates; raise'
            " selection.share, have more clients, or choose another aggregation"
        )


def _require_root(settings: RunSettings, method: Method, prepared: TokenisedData) -> None:
    """Raise SettingsError if an aggregation needs examples of the server's own and there are none."""
    if method.aggregation.needs_root and prepared.root is None:
        raise SettingsError(
            f'aggregation.name = "{settings.aggregation.name}" compares updates with what the server\'s own'
            " examples give, and there is none; name a file of examples in data.root"
        )


def _require_contribution(settings: RunSettings, method: Method, prepared: TokenisedData) -> None:
    """Raise SettingsError if the contribution of each client is asked for and cannot be computed."""
    if settings.evaluation.contribution and not method.algorithm.server_is_model:
        raise SettingsError(
            f"evaluation.contribution scores the server's model without each client, and algorithm.name ="
            f" {settings.algorithm.name!r} has none; set evaluation.contribution = false"
        )
    if settings.evaluation.contribution and method.aggregation.needs_root:
        raise SettingsError(
            "evaluation.contribution aggregates each round again without each client, and aggregation.name ="
            f' "{settings.aggregation.name}" needs the server\'s own update for that, which is not kept; set'
            " evaluation.contribution = false"
        )
    if settings.evaluation.contribution and not len(prepared.heldout):
        raise SettingsError(
            "evaluation.contribution scores held-out examples, and there is none; set data.holdout, or"
            " evaluation.contribution = false"
        )


def require_room(base: bases.Base, method: Method) -> None:
    """Raise SettingsError if the base or the memory has no room for the ranks that a method adds."""
    stacked = [target for target in base.targets if target.experts > 1]
    if method.aggregation.side_rank and stacked:
        raise SettingsError(
            f"{stacked[0].module}.{stacked[0].parameter} of base {base.name} stacks the matrices of"
            f" {stacked[0].experts} experts, which cannot have the {method.aggregation.side_rank} side ranks"
            ' of this aggregation; set [aggregation] name = "product", or adapter.target_parameters = []'
        )
    more = method.more_ranks
    needed, free = memory.adapter_bytes(base, more), memory.free_bytes(base.device)
    if more and needed > free:
        raise SettingsError(
            f"an adapter with {more} ranks more than adapter.rank takes {needed / 1e9:.3g} GB, and"
            f" {free / 1e9:.3g} GB are free; lower aggregation.side_rank or algorithm.rank"
        )
