"""The clients' local factors matrix by matrix, for aggregations that work on the products B A.

An update holds local - broadcast at the rank that its client trained. The local factors are the broadcast's
plus this change: the ranks that a client did not train are as they were sent, and so is a factor that an
update does not hold. Where a client was sent its own ranks alone, its local factors have these alone. Updates
are held as they came, and one matrix at a time is float64.

A parameter that stacks one matrix per expert has one product per expert: the rows of its A (E r, in) are
expert by expert, and the columns of its B (out, r E) rank by rank.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from shepherd.core.adapter import Adapter
from shepherd.core.aggregation import Aggregation
from shepherd.core.factor_gap import Pair, pairs
from shepherd.core.messages import Context, ServerState, Update
from shepherd.core.payload import Payload
from shepherd.core.product import Factors, Near, joined, scale_of
from shepherd.core.sums import Sums, require_some, require_weight
from shepherd.errors import AdapterError, FederationError

Single = NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True)
class Module:
    """One adapted matrix in a round: the broadcast's factors and each client's, in float64."""

    pair: Pair
    round: int
    """Rounds finished before this one."""
    expert: int
    experts: int
    broadcast: Factors
    """The trained ranks of the broadcast."""
    side: Factors
    """Its other ranks, which no client trains."""
    local: tuple[Factors, ...]
    """The factors of each client: of all trained ranks, or where clients are truncated, of its own."""
    weights: tuple[float, ...]
    """The weight of each client; they sum to 1."""
    ends: tuple[int, ...] = ()
    """The smaller ranks at which clients of the run are truncated, also clients that are not in the round."""
    seed: int = 0
    """Seed of the run, for factors that are drawn."""

    @property
    def rank(self) -> int:
        """The number of trained ranks."""
        return len(self.broadcast.a)

    def near(self, step: float = 1.0) -> Near:
        """What new factors stay close to: the mean of A, where ranks that a client lacks are unchanged.

        Args:
            step: how far to go from the broadcast's A to that mean, as the products go; else B alone would
                grow with a step above 1, and with it the effect of each later step of A.
        """
        a = self.broadcast.a.copy()
        for part, weight in zip(self.local, self.weights, strict=True):
            a[: len(part.a)] += step * weight * (part.a - self.broadcast.a[: len(part.a)])
        return Near(a, scale_of(self.broadcast.a), self.ends)


@dataclass(frozen=True, slots=True, kw_only=True)
class Gathered:
    """The updates of a round, checked, with what is averaged as it is."""

    state: ServerState
    updates: tuple[Update, ...]
    weight: float
    others: Payload
    """The mean change of tensors that are not a factor of a matrix."""
    extra: Payload

    def modules(self, context: Context, side_rank: int = 0, *, truncated: bool = False) -> Iterator[Module]:
        """Each matrix that a client has changed.

        Args:
            truncated: whether a client of a smaller rank was sent its own ranks alone.

        Raises:
            AdapterError: a tensor does not fit the broadcast, or experts' matrices have side ranks or
                unequal ranks.
        """
        adapter = self.state.adapter
        for pair in pairs(adapter):
            held = [update for update in self.updates if pair.a in update.delta or pair.b in update.delta]
            if not held:
                continue
            experts = _experts(pair, adapter, context, side_rank)
            trained = len(adapter[pair.a]) - side_rank
            ranks = [_rank(pair, adapter, update, trained, experts) for update in self.updates]
            for expert in range(experts):
                b, a = _matrix(adapter[pair.a], adapter[pair.b], expert, experts)
                mine = Factors(b.astype(np.float64), a.astype(np.float64))
                own = len(mine.a) - side_rank
                ends = {*context.ranks, *(rank // experts for rank in ranks)} if truncated else set()
                yield Module(
                    pair=pair,
                    round=self.state.round,
                    expert=expert,
                    experts=experts,
                    broadcast=mine.first(own),
                    side=Factors(mine.b[:, own:], mine.a[own:]),
                    local=tuple(
                        _local(
                            pair,
                            mine.first(rank // experts if truncated else own),
                            update,
                            expert,
                            experts,
                        )
                        for update, rank in zip(self.updates, ranks, strict=True)
                    ),
                    weights=tuple(update.weight / self.weight for update in self.updates),
                    ends=tuple(sorted(end for end in ends if end < own)),
                    seed=context.seed,
                )

    def changed(self, results: Iterable[tuple[Module, Factors]]) -> Update:
        """The change from the broadcast to these factors of each matrix, trained and side ranks."""
        adapter = self.state.adapter
        changes: dict[str, Single] = {}
        for module, after in results:
            for name in module.pair:
                if name not in changes:
                    changes[name] = np.zeros(adapter[name].shape, np.float32)
            b, a = _matrix(changes[module.pair.a], changes[module.pair.b], module.expert, module.experts)
            with np.errstate(over="ignore"):  # the round loop refuses what is not finite, by name
                before = joined(module.broadcast, module.side)
                b[:], a[:] = after.b - before.b, after.a - before.a
        return Update(
            round=self.state.round,
            delta=Adapter({**self.others, **changes}),
            weight=self.weight,
            clients=tuple(client for update in self.updates for client in update.clients),
            extra=self.extra,
        )


def of_products(
    after: Callable[[Module], Factors],
    *,
    side_rank: int = 0,
    truncated: bool = False,
    restarts: bool = False,
) -> Aggregation:
    """Build an aggregation that makes new factors of each matrix from the clients' products.

    Args:
        after: the new factors of one matrix, trained and side ranks.
        side_rank, truncated, restarts: as the properties of `Aggregation`.
    """

    def combine(state: ServerState, updates: Iterable[Update], context: Context) -> Update:
        cohort = gather(state, updates)
        modules = cohort.modules(context, side_rank, truncated=truncated)
        return cohort.changed((module, after(module)) for module in modules)

    return Aggregation(
        combine=combine,
        streams=False,
        is_mean=False,
        keeps_basis=False,
        takes_ranks=True,
        truncates=truncated,
        side_rank=side_rank,
        restarts=restarts,
    )


def gather(state: ServerState, updates: Iterable[Update]) -> Gathered:
    """Take all updates of a round, and average what is not a factor of a matrix.

    Raises:
        FederationError: a weight is not a finite number of at least 0, or all are zero.
        AdapterError: an update has a tensor that the adapter lacks, or two differ in those names.
    """
    factors = {name for pair in pairs(state.adapter) for name in pair}
    others, extra, held = Sums(), Sums(), list[Update]()
    for update in updates:
        require_weight(update)
        if strange := update.delta.keys() - state.adapter.keys():
            raise AdapterError(
                f"tensor {min(strange)} of client {update.client} is not in the run's adapter; use the same"
                " target modules"
            )
        others.add({name: update.delta[name] for name in update.delta if name not in factors}, update.weight)
        extra.add(update.extra, update.weight)
        held.append(update)
    weight = sum(update.weight for update in held)
    require_some(state.round, weight)
    return Gathered(
        state=state,
        updates=tuple(held),
        weight=weight,
        others=others.mean(weight),
        extra=extra.mean(weight),
    )


def _experts(pair: Pair, adapter: Adapter, context: Context, side_rank: int) -> int:
    """How many matrices a pair of factors stacks."""
    rows = len(adapter[pair.a])
    if context.rank is None or rows == context.rank + side_rank:
        return 1
    if side_rank:
        raise AdapterError(
            f"tensor {pair.a} stacks the matrices of experts ({rows} rows, a rank of {context.rank}), which"
            ' cannot have side ranks; set [aggregation] name = "product", or adapter.target_parameters = []'
        )
    return max(1, rows // context.rank)


def _rank(pair: Pair, adapter: Adapter, update: Update, trained: int, experts: int) -> int:
    """The rows of A, and columns of B, that an update holds; those of the broadcast, if it holds neither."""
    found = trained
    for axis, name in enumerate(pair):
        if name not in update.delta:
            continue
        shape, whole = update.delta[name].shape, adapter[name].shape
        got = shape[axis] if len(shape) == len(whole) else -1
        if len(shape) != len(whole) or shape[1 - axis] != whole[1 - axis] or not 0 < got <= trained:
            most = (trained, whole[1]) if axis == 0 else (whole[0], trained)
            raise AdapterError(
                f"tensor {name} of client {update.client} has shape {shape}, and at most {most} is trained;"
                " use the same base, and a rank of at most adapter.rank"
            )
        if pair.a in update.delta and got != update.delta[pair.a].shape[0]:
            raise AdapterError(
                f"client {update.client} sends {update.delta[pair.a].shape[0]} ranks of {pair.a} and {got} of"
                f" {pair.b}; send the factors of one rank"
            )
        found = got
    if experts > 1 and found != trained:
        raise FederationError(
            f"client {update.client} has another rank than the adapter in tensor {pair.a}, which stacks the"
            " matrices of experts; give all clients adapter.rank, or set adapter.target_parameters = []"
        )
    return found


def _local(pair: Pair, start: Factors, update: Update, expert: int, experts: int) -> Factors:
    """A client's factors of one matrix: those that it began with, plus its change of the first ranks."""
    b, a = start.b.copy(), start.a.copy()
    if pair.a in update.delta:
        change = update.delta[pair.a].reshape(experts, -1, a.shape[1])[expert]
        a[: len(change)] += change
    if pair.b in update.delta:
        change = update.delta[pair.b].reshape(len(b), -1, experts)[:, :, expert]
        b[:, : change.shape[1]] += change
    return Factors(b, a)


def _matrix(a: Single, b: Single, expert: int, experts: int) -> tuple[Single, Single]:
    """Views of one matrix's B and A."""
    return b.reshape(len(b), -1, experts)[:, :, expert], a.reshape(experts, -1, a.shape[1])[expert]
