"""What the aggregations for rounds with bad clients share: the held cohort, and sums with other weights."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shepherd.core.adapter import Adapter
from shepherd.core.messages import ServerState, Update
from shepherd.core.payload import Payload, require_same_layout
from shepherd.core.ranks import require_whole_rank
from shepherd.core.sums import Sums, require_some, require_weight
from shepherd.errors import FederationError

BLOCK = 64 * 1024
"""Numbers of each update that are sorted at once: their copies stay in a core's cache."""


def held(state: ServerState, updates: Iterable[Update], smallest: int, rule: str) -> list[Update]:
    """All updates of a round, each checked.

    Args:
        smallest: fewest updates that the rule needs.
        rule: its name, for messages.

    Raises:
        FederationError: there are fewer; or a weight is not a finite number of at least 0, or all are zero.
        AdapterError: two updates differ in names or shapes, or a client has another rank than the adapter.
    """
    found: list[Update] = []
    for update in updates:
        require_weight(update)
        require_whole_rank(state.adapter, update)
        require_same_layout(found[0].delta if found else update.delta, update.delta, "an update")
        found.append(update)
    require_some(state.round, sum(update.weight for update in found))
    if len(found) < smallest:
        raise FederationError(
            f"round {state.round + 1} has {len(found)} usable updates, and {rule} requires {smallest}; ask"
            " more clients, or choose another aggregation"
        )
    return found


def combined(
    state: ServerState,
    cohort: Sequence[Update],
    shares: Sequence[float],
    scales: Sequence[float] | None = None,
) -> Update:
    """The mean by these shares of the scaled changes, made of the updates with a share; `extra` is unscaled.

    Where all shares are zero it is no change, of no client.
    """
    delta, extra, kept = Sums(), Sums(), list[Update]()
    for update, share, scale in zip(cohort, shares, scales or [1.0] * len(cohort), strict=True):
        delta.add(update.delta, share * scale)
        extra.add(update.extra, share)
        if share > 0:
            kept.append(update)
    total = sum(shares) or 1.0
    return Update(
        round=state.round,
        delta=delta.mean(total),
        weight=sum(update.weight for update in kept),
        clients=tuple(client for update in kept for client in update.clients),
        extra=extra.mean(total),
    )


def by_coordinate(
    state: ServerState, cohort: Sequence[Update], rule: Callable[[NDArray[np.float32]], NDArray[np.float64]]
) -> Update:
    """The update whose numbers are each made of the clients' own by a rule.

    Args:
        rule: values (K, n) -> (n,), column by column; it gets `BLOCK` columns at a time.
    """

    def of(tensors: Sequence[Payload]) -> Adapter:
        return Adapter({name: _by_blocks([each[name] for each in tensors], rule) for name in tensors[0]})

    return Update(
        round=state.round,
        delta=of([update.delta for update in cohort]),
        weight=sum(update.weight for update in cohort),
        clients=tuple(client for update in cohort for client in update.clients),
        extra=of([update.extra for update in cohort]),
    )


def _by_blocks(
    tensors: Sequence[NDArray[Any]], rule: Callable[[NDArray[np.float32]], NDArray[np.float64]]
) -> NDArray[np.float32]:
    flat = [tensor.reshape(-1) for tensor in tensors]
    result = np.empty(len(flat[0]), np.float32)
    for first in range(0, len(result), BLOCK):
        block = slice(first, first + BLOCK)
        result[block] = rule(np.stack([each[block] for each in flat]))
    return result.reshape(tensors[0].shape)
