"""What each client of a round contributed to the fall of the held-out loss.

With L the held-out loss, x the adapter before the round, x' after it, and x'_k after it without client k:

- leave-one-out, L(x'_k) - L(x'): above 0, the round was better for having client k. It takes one scoring a
  client, and sees what a client adds to the others, so of two clients with the same data neither counts.
- projection, (L(x) - L(x')) p_k <delta_k, delta> / ||delta||^2, with delta the mean of the changes delta_k by
  their weights p_k: the fall divided in proportion to each change's length times its cosine with the mean.
  It takes one scoring more, adds up to the whole fall, and is right to first order alone.

Both are of one round, and of examples that are held out for everybody.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from shepherd.core import Broadcast, Context, Draws, Method, Observer, ServerState, Update, corner
from shepherd.core.cores import bases_of, shrunk
from shepherd.rounds.loop import next_state


@dataclass(slots=True)
class Held:
    """The updates of the round under way, in the rounds that are asked for."""

    wanted: Callable[[int], bool]
    """Whether the updates of a round, counted from 1, are held."""
    updates: list[Update] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _Recording:
    """Observes as the algorithm does, and holds each update."""

    held: Held
    wanted: bool
    inner: Observer | None

    def add(self, update: Update) -> None:
        if self.inner is not None:
            self.inner.add(update)
        if self.wanted:
            self.held.updates.append(update)

    def figures(self) -> Mapping[str, float]:
        return {} if self.inner is None else self.inner.figures()


def recorded(method: Method, held: Held) -> Method:
    """The same method, whose rounds leave their updates in `held`.

    Rounds of an algorithm without an observer are audited, as any that have one.
    """
    own = method.algorithm.observe

    def observe(broadcast: Broadcast, context: Context, draws: Draws) -> Observer:
        held.updates = []
        inner = own(broadcast, context, draws) if own is not None else None
        return _Recording(held, held.wanted(broadcast.round + 1), inner)

    return replace(method, algorithm=replace(method.algorithm, observe=observe))


def without_each(
    method: Method, state: ServerState, updates: Sequence[Update], context: Context, noise: Draws
) -> Iterator[tuple[str, ServerState]]:
    """For each client, the state after the round without its update; nothing if too few would be left.

    Args:
        state: the state before the round.
    """
    if len(updates) <= method.aggregation.smallest_cohort:
        return
    bases = bases_of(method.algorithm, state.adapter, state.round)
    if bases:  # observers see changes of B, and the aggregation gets cores
        updates = [replace(update, delta=shrunk(bases, update.delta)) for update in updates]
    for index, update in enumerate(updates):
        others = iter([*updates[:index], *updates[index + 1 :]])
        aggregate = method.aggregation.combine(state, others, context)
        yield update.client, next_state(method, state, aggregate, context, noise)


def projections(updates: Sequence[Update], fall: float) -> dict[str, float]:
    """The part of each client in the fall of the loss, by its change's projection on the mean change.

    They add up to `fall`; all are 0 if the mean change is 0.
    """
    total = math.fsum(update.weight for update in updates)
    mean = _mean(updates, total)
    square = math.fsum(float(np.vdot(tensor, tensor)) for tensor in mean.values())
    return {
        update.client: fall * update.weight / total * _along(update, mean) / square if square else 0.0
        for update in updates
    }


def _mean(updates: Sequence[Update], total: float) -> dict[str, NDArray[np.float64]]:
    """The weighted mean of the changes; a factor of fewer ranks counts as 0 in the others."""
    shapes: dict[str, tuple[int, ...]] = {}
    for update in updates:
        for name, tensor in update.delta.items():
            shapes[name] = tuple(np.maximum(shapes.get(name, tensor.shape), tensor.shape))
    mean = {name: np.zeros(shape) for name, shape in shapes.items()}
    for update in updates:
        for name, tensor in update.delta.items():
            part = corner(mean[name], tensor.shape)
            part += tensor.astype(np.float64) * (update.weight / total)
    return mean


def _along(update: Update, mean: Mapping[str, NDArray[np.float64]]) -> float:
    return math.fsum(
        float(np.vdot(corner(mean[name], tensor.shape), tensor.astype(np.float64)))
        for name, tensor in update.delta.items()
    )
