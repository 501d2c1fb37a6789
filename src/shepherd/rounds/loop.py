"""The round loop: select a cohort, ask it, check its updates, aggregate, move the adapter, yield the state.

It is only a generator: evaluating, saving, logging and stopping early are the body of the caller's `for`. To
resume, call it with a saved state; the result has the same bits.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from time import perf_counter

import numpy as np

from shepherd.core import (
    Adapter,
    Broadcast,
    ClientInfo,
    Context,
    Draw,
    Draws,
    Federation,
    FromSystem,
    LocalResult,
    Method,
    Payload,
    Scoped,
    Seeded,
    Selection,
    ServerState,
    Update,
    not_finite,
    padded,
    seed_for,
    shapes_of,
)
from shepherd.core.cores import bases_of, grown
from shepherd.core.selection import cohort_seed
from shepherd.core.soundness import carries
from shepherd.errors import Diverged, FederationError
from shepherd.rounds import hearing
from shepherd.rounds.acceptance import RoundLog, RoundRequest, require_own_means, usable_updates, with_counts
from shepherd.rounds.observing import observers
from shepherd.rounds.report import RoundReport
from shepherd.rounds.weights import MAX_SHARE, Allow, Shares, allow_any
from shepherd.settings import RunSettings, SecureTable

UNKNOWN_CONTEXT = Context()
Root = Callable[[Broadcast], Payload]
"""The change that the server's own examples give in a round."""


def start(method: Method, adapter: Adapter, context: Context = UNKNOWN_CONTEXT) -> ServerState:
    """The state before the first round; the adapter gets the ranks that the aggregation keeps in addition."""
    adapter = padded(adapter, method.aggregation.side_rank)
    return ServerState(
        round=0,
        adapter=adapter,
        memory=method.algorithm.server_init(adapter),
        optimiser=method.server.init(adapter),
        transforms=method.transform.init(context),
    )


def rounds(
    method: Method,
    federation: Federation,
    state: ServerState,
    *,
    until: int,
    select: Draw,
    quorum: float,
    seed: int,
    secret: int | None = None,
    noise: Draws | None = None,
    context: Context = UNKNOWN_CONTEXT,
    allow: Allow = allow_any,
    max_share: float = MAX_SHARE,
    root: Root | None = None,
    by_loss: bool = False,
) -> Iterator[tuple[ServerState, RoundReport]]:
    """Train up to round `until`; yield the state and the report after each round.

    One update is held at a time, and up to 1 / max_share of the heaviest, unless the aggregation holds the
    cohort. An empty cohort leaves the adapter as it was, unless noise is added.

    Under a mechanism, a client without a usable update counts as zero, noise and cohorts come from the
    operating system unless they are given, and the report names no client: see `RoundReport.private`.

    Args:
        until: total number of rounds, including those that `state` has finished.
        select: `(clients, round, seed) -> names`, see `core.Selection.cohort`.
        quorum: share of the cohort, in (0, 1], that must give a usable update.
        seed: seed of the run; decides the seeds that clients are sent.
        secret: seed of the server, which decides the cohorts; the default is `seed`, which sites of a real
            federation know, or under a mechanism a number from the operating system. A caller who resumes
            keeps it, where cohorts of several rounds are drawn together.
        context: what is known of the run, for parts that depend on its size.
        noise: randomness for the server half of the transforms; by default it comes from `secret`, or under
            a mechanism from the operating system. Noise from a seed protects nobody who may know the seed.
        allow: what each client may report of its visit; see `shepherd.rounds.weights`.
        max_share: largest share of the mean for one client, in (0, 1]; 1 / n with n < 1 / max_share clients.
        root: tunes the server's own examples, for an aggregation that compares updates with them.
        by_loss: whether `select` reads what the clients reported, which the state then keeps.

    Raises:
        QuorumNotMet: too few usable updates for the quorum, the aggregation or the `min_cohort` of a client
            whose update is among them, or the aggregation chose too few for one; the last state that was
            yielded remains valid.
        FederationError: there is no client, or the new state would not be finite (`Diverged`); or under a
            mechanism there are other clients than it was made for; or cohorts are drawn by loss and no single
            client's is known.
    """
    if by_loss:
        hearing.require_heard(method, federation)
    private = method.is_private
    secret = secret if secret is not None else FromSystem().seed() if private else seed
    noise = noise if noise is not None else FromSystem() if private else Seeded(secret)
    while state.round < until:
        began = perf_counter()
        number = state.round
        clients = federation.clients()
        if private and context is not UNKNOWN_CONTEXT and len(clients) != context.clients:
            raise FederationError(
                f"the noise was made for {context.clients} clients, and there are {len(clients)}; start a new"
                " run with these"
            )
        at_work = getattr(federation, "at_work", _nobody)(number)
        clients = hearing.informed([info for info in clients if info.name not in at_work], state.reports)
        cohort = select(clients, number, cohort_seed(secret, number, context.together))
        broadcast = next_broadcast(method, state, seed_for(seed, number, "clients"))
        request = RoundRequest(
            method=method,
            federation=federation,
            broadcast=broadcast,
            cohort=cohort,
            transforms=state.transforms,
            allow=allow,
            quorum=quorum,
            at_work=at_work,
        )
        log, merges = RoundLog(), getattr(federation, "merges", False)
        seen_by = observers(method, broadcast, context, Seeded(secret), merges)
        if cohort:
            updates = seen_by.passing(usable_updates(request, Shares(max_share), log))
            # pulls the clients through one at a time
            own = (
                replace(context, root=root(broadcast)) if method.aggregation.needs_root and root else context
            )
            aggregate = with_counts(_combined(method, state, broadcast, updates, own), log)
            _require_no_more(updates)
            require_own_means(request, aggregate, log)
        else:
            aggregate = _empty_aggregate(method, broadcast)
        state = next_state(method, state, aggregate, context, Scoped(noise, (number, "noise")))
        if by_loss:
            state = replace(state, reports=hearing.heard(state.reports, number, cohort, log.metrics))
        yield (
            state,
            RoundReport(
                round=state.round,
                cohort=cohort,
                weights=log.weights,
                capped=tuple(log.capped),
                metrics=log.metrics,
                failures=log.failures,
                late=tuple(log.late),
                dropped=() if carries(method) else tuple(log.late),
                carried=log.carried,
                bytes_down=broadcast.nbytes * len(cohort),
                bytes_up=log.bytes_up,
                figures=seen_by.figures(aggregate),
                cosines=seen_by.cosines(aggregate, log.strictest(federation)),
                federation_seconds=log.waited,
                seconds=perf_counter() - began,
                private=private,
                merged=log.merged,
            ),
        )


def context_of(settings: RunSettings, selection: Selection, adapter: Adapter, clients: int) -> Context:
    """The context of a run, from its run file and its data."""
    own = settings.adapter.ranks
    return Context(
        clients=clients,
        share=selection.share,
        rounds=settings.federation.rounds,
        layout=shapes_of(adapter),
        weights=settings.federation.weights,
        rank=settings.adapter.rank,
        cohort=selection.expected(clients),
        together=selection.together,
        ranks=tuple(sorted({*(own.values() if isinstance(own, Mapping) else own)})),
        seed=settings.seed,
    )


def rehearse(method: Method, state: ServerState, context: Context) -> ServerState:
    """The state after a round whose clients changed nothing, without randomness; used for its layout."""
    broadcast = next_broadcast(method, state, 0)
    trained = context.rank if method.aggregation.side_rank else None
    delta, extra = _zeros(method, broadcast, trained)
    update = Update(round=state.round, delta=delta, extra=extra, weight=1.0, clients=("anyone",))
    many = iter([update] * method.aggregation.smallest_cohort)
    context = replace(context, root=delta) if method.aggregation.needs_root else context
    return next_state(method, state, method.aggregation.combine(state, many, context), context, Seeded(0))


def next_broadcast(method: Method, state: ServerState, seed: int) -> Broadcast:
    """The broadcast of the next round, with only the public part of the transforms' state."""
    return Broadcast(
        round=state.round,
        adapter=state.adapter,
        seed=seed,
        transforms=method.transform.public(state.transforms),
        extra=method.algorithm.server_extra(state),
    )


def next_state(
    method: Method, state: ServerState, aggregate: Update, context: Context, noise: Draws
) -> ServerState:
    """The state after a round whose updates were aggregated to `aggregate`.

    Raises:
        Diverged: a number in it would not be finite.
    """
    update, transforms = method.transform.on_server(aggregate, state.transforms, noise)
    update = method.algorithm.settle(update)
    done = replace(state, round=state.round + 1, transforms=transforms)
    if not aggregate.clients and method.transform.mechanism is None:  # nobody was asked, no noise is added
        return done
    update = grown(bases_of(method.algorithm, state.adapter, state.round), update)
    moved = method.server.apply(state, update)
    memory = method.algorithm.server_remember(state, update, context)
    done = replace(done, adapter=moved.adapter, optimiser=moved.optimiser, memory=memory)
    _require_finite(done)
    if method.server.rebase is not None:
        done = replace(done, adapter=method.server.rebase(done, context))
        _require_finite(done)
    return done


def _nobody(round: int) -> Mapping[str, int]:
    """Clients that are still at work, of a federation that carries no late update."""
    return {}


def _combined(
    method: Method, state: ServerState, broadcast: Broadcast, updates: Iterator[Update], context: Context
) -> Update:
    """The aggregate of the updates; under a mechanism it may be of none."""
    if method.is_private:
        held = list(islice(updates, 1))
        if not held:
            return _empty_aggregate(method, broadcast)
        updates = _with_first(held, updates)
    return method.aggregation.combine(state, updates, context)


def _with_first(held: list[Update], rest: Iterator[Update]) -> Iterator[Update]:
    """Yield the one that is held, which is then no longer, and the rest (law 5)."""
    yield held.pop()
    yield from rest


def _empty_aggregate(method: Method, broadcast: Broadcast) -> Update:
    """The aggregate of an empty cohort: zeros, without clients."""
    delta, extra = _zeros(method, broadcast)
    return Update(round=broadcast.round, delta=delta, extra=extra, weight=0.0, clients=())


def bytes_of_round(
    method: Method, state: ServerState, ranks: Sequence[int | None], secure: SecureTable | None = None
) -> tuple[float, float]:
    """Bytes of the tensors that a client receives and sends in a round, on average, encoded as they travel.

    Args:
        ranks: how many ranks of the adapter each client trains; None for all.
        secure: the secure sum, whose ring is that of each number once it is masked.
    """
    broadcast = next_broadcast(method, state, seed=0)
    sent = 0
    for rank, clients in Counter(ranks).items():
        delta, extra = _zeros(method, broadcast, rank)
        update = Update(round=state.round, delta=delta, extra=extra, weight=1.0, clients=("anyone",))
        update, _ = method.transform.at_client(update, broadcast.transforms, Seeded(0), broadcast, Payload())
        sent += clients * update.nbytes
    masked = 1.0 if secure is None else secure.ring_bits / 64  # a code has 64 bits until then
    return broadcast.nbytes, sent / len(ranks) * masked


def client_memory(method: Method, state: ServerState) -> Payload:
    """What a client remembers after its first visit, if that changed nothing; used for its layout."""
    broadcast, client = next_broadcast(method, state, seed=0), ClientInfo(name="anyone", examples=1)
    begun = method.algorithm.start(broadcast, Payload(), client)
    trained = Adapter(
        {n: tensor for n, tensor in begun.items() if method.algorithm.trainable(n, state.round)}
    )
    result = LocalResult(start=begun, local=trained, steps=1, rate_sum=1.0, learning_rate=1.0)
    own, _ = method.algorithm.remember(Payload(), broadcast, result)
    delta, extra = _zeros(method, broadcast)
    update = Update(round=state.round, delta=delta, extra=extra, weight=1.0, clients=("anyone",))
    _, kept = method.transform.at_client(update, broadcast.transforms, Seeded(0), broadcast, Payload())
    return Payload({**own, **{f"transform {name}": tensor for name, tensor in kept.items()}})


def _zeros(method: Method, broadcast: Broadcast, rank: int | None = None) -> tuple[Adapter, Payload]:
    """The change and the extra of a client that trained this many ranks and changed nothing."""
    expected = method.expects(broadcast, ClientInfo(name="anyone", examples=1, rank=rank))
    delta, extra = (
        {name: np.zeros(shape, np.float32) for name, shape in part.items()}
        for part in (expected.delta, expected.extra)
    )
    return Adapter(delta), Payload(extra)


def _require_finite(state: ServerState) -> None:
    for tensors in (state.adapter, *state.memory.values(), *state.optimiser.values()):
        for name in not_finite(tensors):
            raise Diverged(
                f"round {state.round} would make tensor {name} not finite; clip the updates "
                "or lower the learning rate, and resume from the round before"
            )


def _require_no_more(updates: Iterator[Update]) -> None:
    """Raise FederationError if the aggregation left out updates, which were counted for the quorum."""
    if next(updates, None) is not None:
        raise FederationError(
            "the aggregation stopped before the last update of the round; it must consume every update"
        )
